"""What a bench sends, and when: arms (which mode is asked for) and load points (how fast)."""

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import PositiveInt

from reasoning_net.errors import StageError
from reasoning_net.stages.evaluate import Arm

N = TypeVar("N", int, float)
COMPARED = "compared"


@dataclass(frozen=True, slots=True)
class Load:
    """One load point. A closed loop keeps `value` requests in flight; an open one sends `value` a second, come what may. Of a
    conversation it is the turn."""

    loop: Literal["closed", "open", "turn"]
    value: float

    def __str__(self) -> str:
        if self.loop == "turn":
            return f"turn {self.value:g}"
        return f"{self.value:g} at once" if self.loop == "closed" else f"{self.value:g} arrivals/s"

    @property
    def file_name(self) -> str:
        return f"{self.loop}_{self.value:g}"

    def num_requests(self, requests: int) -> int:
        """Alone, an eighth of the requests will do: nothing but a request's own time is measured there."""
        return -(-requests // 8) if self == ALONE else requests


ALONE = Load("closed", 1)


def load_points(concurrency: str, rate: str) -> tuple[Load, ...]:
    """Raises `StageError` for anything but positive numbers."""
    closed = [Load("closed", value) for value in _positive(concurrency, "--concurrency", int)]
    return (*closed, *(Load("open", value) for value in _positive(rate, "--rate", float)))


def _positive(text: str, option: str, kind: Callable[[str], N]) -> list[N]:
    try:
        values = [kind(part) for part in text.split(",") if part]
        if all(0 < value < float("inf") for value in values):
            return list(dict.fromkeys(values))
    except ValueError:
        pass
    what = "whole numbers" if kind is int else "numbers"
    raise StageError(f"{option} takes {what} above 0, separated by commas, not {text!r}.")


def arrivals(rate: float, n: int, rng: random.Random) -> list[float]:
    """Seconds from the start at which n requests arrive, as a Poisson process: clients that know nothing of each other."""
    return list(itertools.accumulate(rng.expovariate(rate) for _ in range(n)))


@dataclass(frozen=True, slots=True)
class Mix:
    """One arm of the bench: what its requests ask for, in shares. Nothing at all of a server without our modes."""

    name: str
    shares: tuple[tuple[Arm, float], ...] = ()

    def draw(self, n: int, rng: random.Random) -> list[Arm | None]:
        if not self.shares:
            return [None] * n
        arms, weights = zip(*self.shares, strict=True)
        return rng.choices(arms, weights, k=n)


def mixes(modes: str, mix: str) -> tuple[Mix, ...]:
    """An arm a mode, and one that draws its modes: `latent:0.7,explicit:0.3`. Raises `StageError`."""
    arms = [Arm.parse(part) for part in modes.split(",") if part]
    single = [Mix(str(arm), ((arm, 1.0),)) for arm in dict.fromkeys(arms)]
    return (*single, *([_mix(mix)] if mix else []))


def _mix(text: str) -> Mix:
    shares: dict[Arm, float] = {}
    for part in text.split(","):
        mode, _, share = part.partition(":")
        if not re.fullmatch(r"\d*\.?\d+", share) or not float(share):
            raise StageError(f"--mix takes modes with shares above 0, such as latent:0.7,explicit:0.3, not {text!r}.")
        shares[Arm.parse(mode)] = float(share)
    return Mix("mix", tuple(shares.items()))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Answers of fixed lengths, for weights that know no end: how long they are is then no part of what is measured."""

    answer_tokens: PositiveInt = 32
    """Length of an answer of random weights."""
    thinking_tokens: PositiveInt = 256
    """Length of their thinking, in explicit mode."""

    def limit(self, arm: Arm | None) -> dict[str, Any]:
        """Fields of a request. A server without our modes thinks in text."""
        thinks = arm is None or arm.mode == "explicit"
        return {"ignore_eos": True, "max_tokens": self.answer_tokens + (self.thinking_tokens if thinks else 0)}
