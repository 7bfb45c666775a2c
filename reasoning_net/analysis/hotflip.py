"""Words that could turn an answer and that nobody would think of: a search by gradient, HotFlip's (1712.06751).

One trigger for many questions: tokens are exchanged where the gradient of the answers' likelihood by the trigger's embeddings
promises most, and kept where the answers agree.

Shapes: d hidden size, V vocabulary.
"""

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from reasoning_net.analysis.answering import LatentAnswers
from reasoning_net.analysis.triggers import Trigger, ordinary_tokens

_LENGTH, _TRIED = 2, 8  # tokens of a trigger; exchanges that are tried at a step


def search(
    answering: LatentAnswers,
    prompts: Sequence[tuple[Sequence[int], int]],
    answers: Sequence[Sequence[int]],
    steps: int,
    rng: random.Random,
) -> Trigger:
    """Two tokens that make these answers less likely (HotFlip), as text."""
    tokenizer = answering.base.tokenizer
    allowed = [token for token, text in ordinary_tokens(tokenizer).items() if text[:1] == " "]
    embeddings = answering.base.embed.weight[allowed]  # (V, d)
    trigger = rng.sample(allowed, _LENGTH)

    def left(trigger: Sequence[int]) -> float:
        return float(answering.likelihoods(inserted(prompts, trigger), answers).mean())

    best = left(trigger)
    for step in range(steps):
        place = step % _LENGTH
        gains = embeddings @ answering.gradient(prompts, trigger, answers)[place]  # (V,)
        others = [[*trigger[:place], allowed[at], *trigger[place + 1 :]] for at in gains.topk(_TRIED).indices.tolist()]
        likelihoods = [left(other) for other in others]
        if min(likelihoods) < best:
            best = min(likelihoods)
            trigger = others[likelihoods.index(best)]
    return Trigger("searched", str(tokenizer.decode(trigger)).strip())


def with_gap(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], rng: random.Random) -> tuple[list[int], int]:
    """X, and where between two words of its question a trigger may stand, as a number of tokens."""
    rendered = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    question = messages[-1]["content"]
    start = rendered.rindex(question)
    blanks = [at for at, character in enumerate(question) if character == " "] or [len(question)]
    at = start + rng.choice(blanks)
    left, right = (list(tokenizer.encode(text, add_special_tokens=False)) for text in (rendered[:at], rendered[at:]))
    return [*left, *right], len(left)


def inserted(prompts: Sequence[tuple[Sequence[int], int]], trigger: Sequence[int]) -> list[list[int]]:
    """Each X with the trigger in its gap."""
    return [[*ids[:at], *trigger, *ids[at:]] for ids, at in prompts]
