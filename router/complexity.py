"""How many tokens an answer to a question needs, found from many answers of different lengths, and what could be saved.

After "How well do LLMs compress their own chain-of-thought? A token complexity approach" (2503.01141): an answer is taken to be
right if and only if it has at least as many tokens as its question needs, whatever way it came about. How far that holds is the
accuracy of this classifier. Their answers come from 31 instructions; ours from modes, budgets, exits and chains with gaps.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.curves import Curve


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer to a question."""

    way: str
    """How it came about: a kind, and how much of it."""
    tokens: float
    right: bool

    @property
    def kind(self) -> str:
        return self.way.split()[0]


def token_complexity(pairs: Sequence[Pair]) -> float:
    """τ̂: the observed length from which on "right" classifies the answers best, the least of equals; ∞ where none is right."""
    if not any(pair.right for pair in pairs):
        return math.inf
    lengths = sorted({pair.tokens for pair in pairs})
    return max(lengths, key=lambda length: sum(pair.right is (pair.tokens >= length) for pair in pairs))


def cheapest_right(pairs: Sequence[Pair]) -> float:
    """Tokens of the cheapest right answer; ∞ where none is right. Who picks it knows all answers, and takes lucky ones, too."""
    return min((pair.tokens for pair in pairs if pair.right), default=math.inf)


def limit(needed: Sequence[float]) -> Curve:
    """(mean tokens, share right) of who knows what each question needs, and answers the cheapest ones first."""
    sums = itertools.accumulate(sorted(filter(math.isfinite, needed)), initial=0.0)
    return [(total / len(needed), number / len(needed)) for number, total in enumerate(sums)]


def cheapest(needed: Sequence[float], accuracy: float) -> float:
    """Mean tokens of the limit at this share of right answers; all that can be right, where they are fewer."""
    curve = limit(needed)
    return next((tokens for tokens, right in curve if right >= accuracy - 1e-9), curve[-1][0])


def realised(tokens: float, accuracy: float, whole: float, needed: Sequence[float]) -> float | None:
    """Which share of what could be saved of `whole` tokens at this accuracy is saved; None where nothing could."""
    possible = whole - cheapest(needed, accuracy)
    return (whole - tokens) / possible if possible > 0 else None
