"""What SFT sees next: levels that open one by one, and batches of prompts of like length."""

import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.tasks import Example, Task

logger = logging.getLogger(__name__)
POOL_BATCHES = 8  # drawn at once, so that prompts of like length come together


class Curriculum:
    """Which levels are open, by a running mean of the NLL at each."""

    def __init__(self, levels: int, start: int, threshold: float) -> None:
        self.levels, self.open, self._threshold = levels, min(start, levels), threshold
        self._nll: dict[int, float] = {}

    def open_at_least(self, level: int) -> None:
        self.open = max(self.open, min(level, self.levels))

    def draw(self, rng: random.Random) -> int:
        """A level: the newest one in two of five draws while not all are open, else uniform."""
        newest = self.open < self.levels and rng.random() < 0.4
        return self.open if newest else rng.randint(1, self.open)

    def update(self, levels: list[int], nll: list[float]) -> None:
        for level in set(levels) - {0}:
            values = [value for at, value in zip(levels, nll, strict=True) if at == level]
            mean = sum(values) / len(values)
            self._nll[level] = 0.9 * self._nll.get(level, 3.0) + 0.1 * mean
        if self.open < self.levels and self._nll.get(self.open, 3.0) < self._threshold:
            self.open += 1

    def state_dict(self) -> dict[str, object]:
        return {"open": self.open, "nll": self._nll}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.open, self._nll = state["open"], state["nll"]  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Sample:
    example: Example
    prompt_ids: list[int]


class Batches:
    """Batches of prompts of like length, drawn by the curriculum. Longer examples than the limits are left out, and counted."""

    def __init__(
        self, task: Task, base: FrozenBase, curriculum: Curriculum, size: int, max_prompt_tokens: int, max_reply_tokens: int
    ) -> None:
        self._task, self._base, self._curriculum, self._size = task, base, curriculum, size
        self._max_prompt_tokens, self._max_reply_tokens = max_prompt_tokens, max_reply_tokens
        self._pool: list[list[Sample]] = []
        self._too_long = 0

    def next(self, rng: random.Random) -> list[Sample]:
        if not self._pool:
            self._pool = self._draw(rng)
        return self._pool.pop()

    def _draw(self, rng: random.Random) -> list[list[Sample]]:
        """`POOL_BATCHES` batches, in random order."""
        streams: dict[int, Iterator[Example]] = {}
        samples: list[Sample] = []
        while len(samples) < POOL_BATCHES * self._size:
            level = self._curriculum.draw(rng)
            if level not in streams:
                streams[level] = self._task.examples(rng.getrandbits(32), "train", level)
            # The stream holds levels up to `level`: skip to one at it, or to an example outside the curriculum.
            for example in itertools.islice(streams[level], 200):
                if example.level in (0, level):
                    break
            sample = Sample(example, self._base.prompt_ids(example.messages))
            if self._fits(sample):
                samples.append(sample)
        samples.sort(key=lambda sample: len(sample.prompt_ids))
        batches = [samples[at : at + self._size] for at in range(0, len(samples), self._size)]
        for batch in batches:
            rng.shuffle(batch)
        rng.shuffle(batches)
        return batches

    def _fits(self, sample: Sample) -> bool:
        reply = len(self._base.tokenizer.encode(sample.example.reply, add_special_tokens=False))
        fits = len(sample.prompt_ids) <= self._max_prompt_tokens and reply < self._max_reply_tokens
        self._too_long += not fits
        if not fits and self._too_long in (1, 100, 10_000):
            logger.warning("%d examples were longer than --max-prompt-tokens or --max-reply-tokens.", self._too_long)
        if self._too_long == 100_000:
            raise StageError("100,000 examples were too long. Raise --max-prompt-tokens or --max-reply-tokens.")
        return fits
