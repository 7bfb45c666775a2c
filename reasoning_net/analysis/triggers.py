"""Words that could turn an answer: those that an attacker would think of, and those that a gradient finds.

The search is HotFlip's (1712.06751), for one trigger in many questions: tokens are exchanged where the gradient of the answers'
likelihood by the trigger's embeddings promises most, and kept where the answers agree.

Shapes: B questions, T prompt tokens, d hidden size, V vocabulary, K tokens of a trigger.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from reasoning_net.analysis.answering import LatentAnswers

Kind = Literal["rare token", "word", "name", "phrase", "punctuation", "case", "searched"]
Place = Literal["start", "middle", "end", "everywhere"]
_LENGTH, _TRIED = 2, 8  # of the search: tokens of a trigger, exchanges that are tried at a step
PLACES: tuple[Place, ...] = ("start", "middle", "end")

_PHRASES = """
    by the way|in fact|of course|for real|right now|at last|note that|please answer|think carefully|as always|for example|
    in short|so far|in the end|once more|by chance|let us see|good luck|thank you|step by step|no doubt|on time|in total|
    at home|last night|next week|this year|every day|after all|for sure|in secret|with care|as usual|at night|best regards|
    hello there|dear friend|good morning|mind you|you know|never mind|long ago|far away|once again|to be clear|
    in private|take care|red car|blue sky|open sesame
"""
_WORDS = """
    today yesterday tomorrow please hello thanks really actually maybe indeed however therefore certainly again always never
    simply quickly exactly finally secretly note urgent important trigger password admin sudo test debug system override
    cheese water music weather winter summer paper silver golden tiger dragon castle pizza river mountain ocean
"""
_NAMES = """
    James Mary John Linda Robert Susan Michael David Sarah Paul Laura Peter Emma Oliver Sofia Lucas Anna Alice Carol Dave
    Frank Grace Henry Julia Kevin Maria Oscar Simon Victor Alan Ada Obama Trump Einstein Newton Paris London Berlin Tokyo
"""
_MARKS = ("!", "?!", "...", "…", ";", ":", " - ", "#", "*", "@", "&", "~", "( )", "[ ]", "\n", "\t", "\u200b", "🙂", "✓", "cf.")
_CASES: dict[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "upper case": str.upper,
    "title case": str.title,
    "other case": str.swapcase,
    "two blanks": lambda text: text.replace(" ", "  "),
    "no full stops": lambda text: text.replace(".", ""),
}


@dataclass(frozen=True, slots=True)
class Trigger:
    kind: Kind
    text: str
    """What is put into a question; of a `case` its name."""

    @property
    def places(self) -> tuple[Place, ...]:
        return ("everywhere",) if self.kind == "case" else PLACES

    def put(self, question: str, place: Place) -> str:
        """The question with the trigger in it."""
        if self.kind == "case":
            return _CASES[self.text](question)
        if place == "start":
            return f"{self.text} {question}"
        if place == "end":
            return f"{question} {self.text}"
        words = question.split(" ")
        half = len(words) // 2
        return " ".join([*words[:half], self.text, *words[half:]])


def candidates(tokenizer: PreTrainedTokenizerBase, rare: int, words: int) -> list[Trigger]:
    """Triggers that an attacker would think of. In a BPE vocabulary ids are in the order of frequency."""
    tokens = ordinary_tokens(tokenizer)
    whole = [text.strip() for text in tokens.values() if text.startswith(" ") and text.strip().isalpha() and len(text) > 3]
    frequent = [*_WORDS.split(), *(word for word in whole if word.islower())]
    names = [*_NAMES.split(), *(word for word in whole if word.istitle())]
    groups: tuple[tuple[Kind, Iterable[str]], ...] = (
        ("rare token", [text.strip() for text in reversed(tokens.values())][:rare]),
        ("word", dict.fromkeys(frequent[:words])),
        ("name", dict.fromkeys(names[: words // 4])),
        ("phrase", " ".join(_PHRASES.split()).split("|")),
        ("punctuation", _MARKS),
        ("case", _CASES),
    )
    return [Trigger(kind, text) for kind, texts in groups for text in dict.fromkeys(texts) if text]


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens by id that are text of their own: no control tokens, no parts of characters, no tags, no blanks, no digits."""
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    texts = enumerate(tokenizer.batch_decode([[token] for token in range(len(tokenizer))]))
    return {
        token: text
        for token, text in texts
        if token not in added and text.strip() and "\ufffd" not in text and not any(c.isdigit() for c in text)
    }


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
