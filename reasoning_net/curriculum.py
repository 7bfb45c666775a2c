"""How far training is, and which levels of a task it sees: they open one by one."""

import random
from typing import Any

import torch


class Curriculum:
    """Which levels are open, by a running mean of the NLL at each. Processes that draw batches share what is known here."""

    def __init__(self, levels: int, start: int, threshold: float) -> None:
        self.levels, self._threshold = levels, threshold
        self._open = torch.tensor(min(start, levels)).share_memory_()
        self._share = torch.tensor(0.0).share_memory_()
        self._nll: dict[int, float] = {}

    @property
    def open(self) -> int:
        """The hardest level that is."""
        return int(self._open)

    @property
    def share(self) -> float:
        """Of the run that is done."""
        return float(self._share)

    @share.setter
    def share(self, share: float) -> None:
        self._share.fill_(share)

    def open_at_least(self, level: int) -> None:
        self._open.fill_(max(self.open, min(level, self.levels)))

    def draw(self, rng: random.Random) -> int:
        """A level: the newest one in two of five draws while not all are open, then the harder of two."""
        if self.open == self.levels:
            return max(rng.randint(1, self.open), rng.randint(1, self.open))
        return self.open if rng.random() < 0.4 else rng.randint(1, self.open)

    def update(self, levels: list[int], nll: list[float]) -> None:
        for level in set(levels) - {0}:
            values = [value for at, value in zip(levels, nll, strict=True) if at == level]
            mean = sum(values) / len(values)
            self._nll[level] = 0.9 * self._nll.get(level, 3.0) + 0.1 * mean
        if self.open < self.levels and self._nll.get(self.open, 3.0) < self._threshold:
            self.open_at_least(self.open + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"open": self.open, "nll": self._nll}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._open.fill_(state["open"])
        self._nll = state["nll"]
