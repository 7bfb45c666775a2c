"""Which tokens and replies SFT learns from: TIP's share of a distillation's tokens, RSD's filter of a data set's replies.

Shapes: B batch, Y tokens of a reply.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.padding import padded
from reasoning_net.tasks import Example, Task

REFUSED = {
    "aslec": "chooses among chains, before SFT: `latentserve train traces --best-of K --select aslec-drop`",
    "rsd": "filters the replies of a data set, which is --filter-replies 0.01",
    "cdpo": "needs two more models, tuned on right and on wrong answers, and pairs of them",
    "mobilellm": "weighs the sources of a corpus of trillions of tokens; the curriculum weighs levels",
    "light-if": "trains the base to follow instructions, and its formulas could not be found",
    "quiet-star": "trains the base to think after every token",
    "tool-light": "is about calls of tools, and none are trained here",
}
"""What the literature has, and why it is not here."""


def share_of(select: str | None) -> float | None:
    """The share of tokens that `tip:0.5` keeps; a half where it does not say. Raises `StageError`."""
    if select is None:
        return None
    name, _, setting = select.partition(":")
    if (reason := REFUSED.get(name.partition("-")[0], REFUSED.get(name))) is not None:
        raise StageError(f"--select {name} is not applicable to SFT: it {reason}.")
    try:
        share = float(setting or 0.5) if name == "tip" else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise StageError(f"--select takes tip:SHARE, such as tip:0.5 for half of the tokens, not {select!r}.")
    return share


def tip_score(entropy: Tensor, divergence: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """TIP (2604.14084): 1 − (1 − h)(1 − δ), (B, Y), from the student's entropy and KL(student ‖ teacher), both in nats: what
    the student is unsure of, and what it is sure of and the teacher is not.

    h is the entropy over log V, cut at the batch's 98th percentile; both are scaled to [0, 1] over the batch.
    """
    h = entropy / math.log(vocabulary)
    ceiling = h[mask].sort().values[math.ceil(0.98 * int(mask.sum())) - 1]
    return 1 - (1 - _scaled(h.clamp(max=ceiling), mask)) * (1 - _scaled(divergence, mask))


def _scaled(values: Tensor, mask: Tensor) -> Tensor:
    low, high = values[mask].min(), values[mask].max()
    return (values - low) / (high - low).clamp(min=1e-8)


def top_tokens(score: Tensor, mask: Tensor, share: float) -> Tensor:
    """The share of the tokens with the highest scores, (B, Y) bool; one at least."""
    number = max(1, round(share * int(mask.sum())))
    chosen = score.masked_fill(~mask, -math.inf).flatten().topk(number).indices
    return torch.zeros_like(mask).flatten().index_fill(0, chosen, value=True).view_as(mask)


def selected_divergence(divergence: Tensor, entropy: Tensor, mask: Tensor, share: float, vocabulary: int) -> Tensor:
    """The divergence (B, Y) of the selected tokens, (B,), scaled so that its mean over B is the mean over these tokens.

    entropy: the student's, (B, Y).
    """
    chosen = top_tokens(tip_score(entropy, divergence.detach(), mask, vocabulary), mask, share)
    return (divergence * chosen).sum(1) * len(divergence) / chosen.sum()


@torch.no_grad()
def least_likely(base: FrozenBase, layout: LayoutIds, examples: Sequence[Example]) -> list[float]:
    """The probability of each reply's least likely token, where the base has read its own chain before."""
    encode, end = base.tokenizer.encode, int(base.tokenizer.eos_token_id)
    chains = [[*layout.before_latents, *encode(e.chain, add_special_tokens=False), *layout.after_latents] for e in examples]
    replies = padded([[*encode(e.reply, add_special_tokens=False), end] for e in examples]).to(base.device)
    chain = padded(chains, on_the_left=True).to(base.device)  # its last token predicts the reply's first
    prompt = base.read([base.prompt_ids(example.messages) for example in examples])
    logits = base.answer_logits(prompt, base.embed(chain.clamp(min=0)), replies.clamp(min=0), chain != -100)
    chosen = logits.float().log_softmax(-1).gather(-1, replies.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(replies == -100, 0.0).amin(1).exp().tolist()


def reply_filter(
    base: FrozenBase, layout: LayoutIds, least: float, file: Path, batch_size: int = 16
) -> Callable[[Sequence[Example]], list[bool]]:
    """RSD (2509.22230), for a data set's replies: of which ones the base would write each token with at least that probability.

    RSD has a student write a teacher's reply anew where it would not have said so; here such a reply is left out. The
    probabilities are kept in `file`, for a run that goes on.
    """

    def keeps(examples: Sequence[Example]) -> list[bool]:
        if not all(example.chain for example in examples):
            raise StageError(
                "--filter-replies asks what the base writes after its own chain, and a row of the data has none. Record chains "
                "with `latentserve train traces`, and name their column: --columns chain=…"
            )
        of = hashlib.sha256(repr([(e.messages, e.chain, e.reply) for e in examples]).encode()).hexdigest()
        known = json.loads(file.read_text()) if file.exists() else {}
        stored: list[float] = known.get("least", [])
        if known.get("of") != of:
            batches = (examples[at : at + batch_size] for at in range(0, len(examples), batch_size))
            with tqdm(total=len(examples), desc="replies", unit="row") as progress:
                stored = []
                for batch in batches:
                    stored += least_likely(base, layout, batch)
                    progress.update(len(batch))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"of": of, "least": stored}))
        return [probability >= least for probability in stored]

    return keeps


def filtered(task: Task, keeps: Callable[[Sequence[Example]], list[bool]]) -> None:
    """Leave out replies of a data set; raises `StageError` for a task that makes its own."""
    from reasoning_net.data import DataTask  # math-verify and data sets are for those who have rows

    if not isinstance(task, DataTask):
        raise StageError("--filter-replies is for the replies of a data set: the demo's are its base's own.")
    before, after = task.keep("train", keeps)
    tqdm.write(f"replies that the base would write: {after:,} of {before:,}")
