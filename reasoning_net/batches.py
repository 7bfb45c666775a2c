"""What SFT sees next, as tensors: questions of like length together, what is to be written after the latents, and hints.

Shapes: B questions, T prompt tokens, N latents, Y tokens to be written, C tokens of the chain.
"""

import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from reasoning_net.curriculum import Curriculum
from reasoning_net.errors import StageError
from reasoning_net.layout import LayoutIds, prompt_ids
from reasoning_net.padding import left_padded, padded
from reasoning_net.tasks import Example, Task

logger = logging.getLogger(__name__)
POOL_BATCHES = 8  # drawn at once, so that prompts of like length come together
MAX_HINTS = 32
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Kind = Literal["reply", "rest", "distill"]
"""What is written after the latents: the reply; the rest of the chain and the reply; what the base itself writes."""
Milestones = Literal["results", "steps"]
"""What the first latents are to hold, one token each: the results of the chain's steps, or the steps themselves (operator,
operand, result), as LOTUS supervises every position (2606.31779)."""


class Batch(NamedTuple):
    prompt_ids: Tensor  # (B, T), padded on the left
    mask: Tensor  # (B, T) bool
    targets: Tensor  # (B, Y), −100 where there is none
    chain: Tensor  # (B, C): for `distill` the chain with its tags, padded with −100 on the left; else C is 0
    hints: Tensor  # (B, ≤ N) tokens that latents are to hold, −100 where there is none
    num_latents: Tensor  # (B,) how many of the N the base reads
    levels: Tensor  # (B,)
    hint_weight: Tensor  # ()
    computed: int
    """N: how many the network computes."""
    num_rounds: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Plan:
    """How batches are drawn; the shares are of the run."""

    batch_size: int
    num_latents: int
    """N until the nested part of the run; in it half of the questions are answered from fewer."""
    max_latents: int
    """In the nested part a quarter of the batches have as many latents."""
    min_latents: int
    num_rounds: int
    nested_from: float
    """Share of the run after which questions have different numbers of latents."""
    rest_share: float
    distill_share: float
    milestones: Milestones
    hint_weight: float
    hinted_until: float
    """Share of the run after which hints have no weight."""
    max_prompt_tokens: int
    max_reply_tokens: int
    pad_to: int = 1
    """Lengths are padded to multiples of this, for shapes that come again."""


@dataclass(slots=True)
class _Sample:
    example: Example
    prompt_ids: list[int]
    reply_ids: list[int]


class Batches(IterableDataset[Batch]):
    """An endless stream that is a function of the seed, the first batch and the curriculum.

    Longer examples than the limits are left out, and counted.
    """

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, layout: LayoutIds, curriculum: Curriculum, plan: Plan, *,
        seed: str, first: int,
    ) -> None:  # fmt: skip
        """`first`: the batch to start with; a multiple of `POOL_BATCHES` goes on as if it had never stopped."""
        self._task, self._tokenizer, self._layout = task, tokenizer, layout
        self._curriculum, self._plan, self._seed, self._first = curriculum, plan, seed, first
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        self._end = int(tokenizer.eos_token_id)
        self._tokens: dict[str, int] = {}
        self._too_long = 0

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        stride = worker.num_workers if worker else 1
        for pool in itertools.count(self._first // POOL_BATCHES + (worker.id if worker else 0), stride):
            rng = random.Random(f"{self._seed}-{pool}")
            for samples in self._draw(rng):
                yield self._batch(rng, samples, self._curriculum.share)

    def _draw(self, rng: random.Random) -> list[list[_Sample]]:
        """`POOL_BATCHES` batches, in random order."""
        streams: dict[int, Iterator[Example]] = {}
        samples: list[_Sample] = []
        while len(samples) < POOL_BATCHES * self._plan.batch_size:
            level = self._curriculum.draw(rng)
            if level not in streams:
                streams[level] = self._task.examples(rng.getrandbits(32), "train", level)
            example = next(streams[level])
            if not example.reply:
                raise StageError(
                    "A row has nothing to learn from: name the column of its answer or its reply, --columns reply=…."
                )
            sample = _Sample(example, prompt_ids(self._tokenizer, example.messages), [*self._encode(example.reply), self._end])
            if self._fits(sample):
                samples.append(sample)
        samples.sort(key=lambda sample: len(sample.prompt_ids))
        size = self._plan.batch_size
        batches = [samples[at : at + size] for at in range(0, len(samples), size)]
        for batch in batches:
            rng.shuffle(batch)
        rng.shuffle(batches)
        return batches

    def _fits(self, sample: _Sample) -> bool:
        plan = self._plan
        fits = len(sample.prompt_ids) <= plan.max_prompt_tokens and len(sample.reply_ids) <= plan.max_reply_tokens
        self._too_long += not fits
        if not fits and self._too_long in (1, 100, 10_000):
            logger.warning("%d examples were longer than --max-prompt-tokens or --max-reply-tokens.", self._too_long)
        if self._too_long == 100_000:
            raise StageError("100,000 examples were too long. Raise --max-prompt-tokens or --max-reply-tokens.")
        return fits

    def _batch(self, rng: random.Random, samples: list[_Sample], share: float) -> Batch:
        plan, drawn, is_nested = self._plan, rng.random(), share >= self._plan.nested_from
        kind: Kind = (
            "rest" if drawn < plan.rest_share else "distill" if drawn < plan.rest_share + plan.distill_share else "reply"
        )
        least, computed = plan.min_latents, min(plan.num_latents, plan.max_latents)
        if is_nested and kind == "reply" and plan.max_latents > computed and rng.random() < 0.25:
            samples = samples[: batch_at_equal_cost(len(samples), computed, plan.max_latents)]
            least, computed = computed, plan.max_latents
        sizes = [n for n in _SIZES if least <= n < computed] if is_nested else []
        examples = [sample.example for sample in samples]
        ids, mask = left_padded([sample.prompt_ids for sample in samples], plan.pad_to)
        return Batch(
            prompt_ids=ids,
            mask=mask,
            targets=padded(
                [self._after_latents(s, kind) for s in samples],
                2 * plan.pad_to if kind == "rest" and plan.pad_to > 1 else -(-plan.pad_to // 4),
            ),
            chain=padded(
                [self._chain(example) if kind == "distill" else [] for example in examples], plan.pad_to, on_the_left=True
            ),
            hints=padded([self._hints(example, computed) for example in examples], min(MAX_HINTS, computed)),
            num_latents=torch.tensor([rng.choice(sizes) if sizes and rng.random() < 0.5 else computed for _ in samples]),
            levels=torch.tensor([example.level for example in examples]),
            hint_weight=torch.tensor(plan.hint_weight if share < plan.hinted_until else 0.0),
            computed=computed,
            num_rounds=plan.num_rounds if kind == "rest" else rng.randint(1, plan.num_rounds),
            kind=kind,
        )

    def _after_latents(self, sample: _Sample, kind: Kind) -> list[int]:
        """`rest`: the second half of the chain's lines, whose start the latents have to stand for, then the reply."""
        if kind != "rest":
            return sample.reply_ids
        lines = _chain_of(sample.example).split("\n")
        rest = "\n".join(lines[len(lines) // 2 :])
        return [*self._encode(rest), *self._layout.after_latents, *sample.reply_ids]

    def _chain(self, example: Example) -> list[int]:
        return [*self._layout.before_latents, *self._encode(_chain_of(example)), *self._layout.after_latents]

    def _hints(self, example: Example, computed: int) -> list[int]:
        texts = example.milestones if self._plan.milestones == "results" else example.condensed
        return [self._token(text) for text in texts[: min(MAX_HINTS, computed)]]

    def _token(self, text: str) -> int:
        """The token that a text is; −100 for one that is more."""
        if text not in self._tokens:
            ids = self._encode(text)
            self._tokens[text] = ids[0] if len(ids) == 1 else -100
        return self._tokens[text]


def _chain_of(example: Example) -> str:
    if not example.chain:
        raise StageError(
            "An example has no chain, which --rest-share and --distill-share need. Record chains with "
            "`latentserve train traces`, and give them as --data FILE --preset traces."
        )
    return example.chain


def batch_at_equal_cost(batch_size: int, num_latents: int, larger: int) -> int:
    """Questions with `larger` latents each whose step costs about as much as `batch_size` with `num_latents`."""
    return max(8, batch_size * 2 * num_latents // (num_latents + larger))
