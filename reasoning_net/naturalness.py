"""Which of several chains is the most natural: by its log-probabilities, without the bias for long steps (ASLEC, 2604.06834).

A step's first token is improbable, and long steps dilute it: the mean log-probability prefers chains with long steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reasoning_net.boundaries import Boundaries

Choice = Literal["mean", "aslec-drop", "aslec-casl"]


@dataclass(frozen=True, slots=True)
class ChainScore:
    """Mean log-probabilities of a chain's tokens."""

    mean: float
    first: float
    """Of the first tokens of its steps."""
    drop: float
    """Of all other tokens: aslec-drop."""
    density: float
    """Z: steps ÷ tokens."""

    @classmethod
    def of(cls, token_ids: Sequence[int], log_probs: Sequence[float], boundaries: Boundaries) -> "ChainScore":
        """From a chain's tokens and their log-probabilities. What is blank between steps belongs to the step after it."""
        starts, at = set[int](), 0
        for step in boundaries.pieces(token_ids):
            starts.add(at + next(place for place, token in enumerate(step) if not boundaries.is_blank(token)))
            at += len(step)
        values = torch.tensor(log_probs[:at] if at else [0.0])
        is_first = torch.tensor([place in starts for place in range(len(values))])
        first, rest = (values[one].mean() if bool(one.any()) else values.mean() for one in (is_first, ~is_first))
        return cls(float(values.mean()), float(first), float(rest), len(starts) / len(values))


def scores(chains: Sequence[ChainScore], choice: Choice) -> list[float]:
    """By `choice`, higher: more natural. aslec-casl takes out what the density of steps explains, over all these chains."""
    if choice == "aslec-casl":
        gamma = confounding(chains)
        return [chain.mean - gamma * chain.density for chain in chains]
    return [chain.drop if choice == "aslec-drop" else chain.mean for chain in chains]


def confounding(chains: Sequence[ChainScore]) -> float:
    """γ of mean = β₁ · first + β₂ · drop + γ · density + ε, by least squares."""
    columns = torch.tensor([[one.first, one.drop, one.density] for one in chains], dtype=torch.float64)
    means = torch.tensor([[one.mean] for one in chains], dtype=torch.float64)
    return float(torch.linalg.lstsq(columns, means).solution[2])


def correlation(values: Sequence[float], chains: Sequence[ChainScore]) -> float:
    """Of scores with the mean length of steps; 0 where nothing varies."""
    both = torch.stack([torch.tensor(values), torch.tensor([1 / one.density if one.density else 0.0 for one in chains])])
    return float(torch.corrcoef(both)[0, 1].nan_to_num()) if len(chains) > 1 else 0.0


def figures(groups: Sequence[Sequence[ChainScore]]) -> dict[str, float]:
    """How much each score goes with the length of steps, over all chains."""
    chains = [chain for group in groups for chain in group]
    choices: tuple[Choice, ...] = ("mean", "aslec-drop", "aslec-casl")
    return {f"step length and {one}": round(correlation(scores(chains, one), chains), 3) for one in choices}


def best(group: Tensor, right: Sequence[bool]) -> int:
    """The chain of the highest score (K,) among those that led to a right answer; among all where none did."""
    allowed = torch.tensor(right) if any(right) else torch.ones(len(right), dtype=torch.bool)
    return int(group.masked_fill(~allowed, -torch.inf).argmax())
