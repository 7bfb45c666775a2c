"""Which steps of a chain are important: those without which it would no longer lead to its answer.

The two-stage search of 2604.18307. A part T of a chain passes where it is *sufficient* (of K samples after X and T, its
thinking closed, the share of right ones reaches τ) and *attainable* (its perplexity is near the whole chain's, on the scale
that ends at saying the answer straight away). Stage 1 keeps, from the last step of the prefix backwards, the predecessors that
make up a growing fraction of influence, until that passes: the others are removable. Stage 2 takes out the rest one by one, of
least influence first, until nothing more can go: what stays is important.

We differ in one thing: the sufficient prefix is the shortest one from which on all suffice, and not the first that does. A
running value that is the answer by chance is no end of the work.

Searches are generators: those of many chains run side by side, and what they ask is answered in batches.
"""

import math
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Label = Literal["important", "removable", "unlabelled", "after"]
"""`unlabelled`: stage 2 took it out. `after`: behind the sufficient prefix."""
Kept = tuple[int, ...]
FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a part of a chain."""

    sufficient: bool
    attainable: bool

    @property
    def passes(self) -> bool:
        return self.sufficient and self.attainable


Influence = Callable[[int], Tensor]
"""Of all steps before step j on it, (j,)."""
Search = Generator[Kept, Verdict | None, list[Label] | None]
"""Asks about parts of one chain; comes to a label for each step, or to None where all of its steps do not suffice."""


def search(number: int, influence: Influence) -> Search:
    """Labels of a chain of so many steps."""
    prefix = yield from _prefix(number)
    if not prefix:
        return None
    kept = yield from _kept_by_influence(prefix, influence)
    needed = yield from _needed(kept, influence)
    return [
        "important" if at in needed else "unlabelled" if at in kept else "removable" if at < prefix else "after"
        for at in range(number)
    ]


def _prefix(number: int) -> Generator[Kept, Verdict, int]:
    """How many steps the shortest prefix has from which on all suffice; 0 where all steps do not."""
    for length in range(number, 0, -1):
        if not (yield tuple(range(length))).sufficient:
            return length + 1 if length < number else 0
    return min(number, 1)


def _kept_by_influence(prefix: int, influence: Influence) -> Generator[Kept, Verdict, Kept]:
    tried: Kept = ()
    for fraction in FRACTIONS:
        kept = predecessors(influence, prefix - 1, fraction) if fraction else (prefix - 1,)
        if kept != tried and (yield kept).passes:
            return kept
        tried = kept
    return tuple(range(prefix))


def predecessors(influence: Influence, last: int, fraction: float) -> Kept:
    """The last step, and, backwards from each that is kept, the fewest steps before it that make up the fraction of all
    influence on it."""
    kept = {last}
    for step in range(last, 0, -1):
        if step not in kept:
            continue
        values, order = influence(step).sort(descending=True)
        reached = values.cumsum(0) >= fraction * values.sum()
        kept |= set(order[: int(reached.int().argmax()) + 1].tolist())
    return tuple(sorted(kept))


def _needed(kept: Kept, influence: Influence) -> Generator[Kept, Verdict, Kept]:
    left, removed = list(kept), len(kept) > 1
    if removed:
        mean = {step: _mean_influence(step, kept, influence) for step in kept}
        left.sort(key=mean.__getitem__)
    while removed:
        removed = False
        for step in list(left):
            others = tuple(sorted(one for one in left if one != step))
            if others and (yield others).passes:
                left.remove(step)
                removed = True
    return tuple(sorted(left))


def _mean_influence(step: int, kept: Kept, influence: Influence) -> float:
    """On the steps after it that are kept; the last one's is not compared with anything, and goes last."""
    later = [float(influence(other)[step]) for other in kept if other > step]
    return statistics.fmean(later) if later else math.inf


def run(
    searches: Sequence[Search], judge: Callable[[Sequence[tuple[int, Kept]]], Sequence[Verdict]]
) -> list[list[Label] | None]:
    """Searches side by side. `judge` answers what they ask, (number of the search, part) each."""
    found: dict[int, list[Label] | None] = {}
    answered: dict[int, Verdict | None] = dict.fromkeys(range(len(searches)))
    while answered:
        asked: dict[int, Kept] = {}
        for number, verdict in answered.items():
            try:
                asked[number] = searches[number].send(verdict)
            except StopIteration as end:
                found[number] = end.value
        answered = dict(zip(asked, judge(list(asked.items())) if asked else (), strict=True))
    return [found[number] for number in range(len(searches))]
