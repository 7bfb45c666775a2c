"""What to drop from a KV cache while a chain is written: policies of the literature as scores of cached tokens.

Shapes: B sequences, T cached tokens, those of the left padding and those that are dropped among them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_SINKS = 4
"""First tokens that StreamingLLM (2309.17453) keeps."""
_FIRST = 1e6
"""More than any score: what is kept before the others."""


@dataclass(slots=True)
class Seen:
    """How the tokens of a cache were attended to so far. Attention is the mean of layers and heads."""

    is_question: Tensor  # (B, T) bool
    order: Tensor  # (B, T) position in the sequence, −1 in the padding
    total: Tensor  # (B, T) cumulative attention
    last: Tensor  # (B, T) the last step that attended to it
    longest_gap: Tensor  # (B, T) most steps between two that did (MRI)
    threshold: float
    """Attention from which on a step attends to a token (α)."""
    now: int = 0

    @classmethod
    def nothing(cls, mask: Tensor, threshold: float) -> "Seen":
        """Of questions, (B, T) bool, that nothing has attended to yet."""
        order = (mask.long().cumsum(1) - 1).masked_fill(~mask, -1)
        zeros = torch.zeros(mask.shape, device=mask.device)
        return cls(mask, order, zeros, order.float(), zeros.clone(), threshold)

    def attend(self, weights: Tensor, steps: Tensor) -> None:
        """By one more token in each sequence; weights (B, T), and its position (B,)."""
        self.total += weights
        active = weights > self.threshold
        gap = (steps[:, None] - self.last).clamp(min=0)
        self.longest_gap = torch.where(active, torch.maximum(self.longest_gap, gap), self.longest_gap)
        self.last = torch.where(active, steps[:, None].float(), self.last)

    def append(self) -> None:
        """One more token in each sequence, which attends to itself."""
        rows = len(self.order)
        position = self.order.amax(1, keepdim=True) + 1
        zeros = self.total.new_zeros(rows, 1)
        self.order = torch.cat([self.order, position], dim=1)
        self.last = torch.cat([self.last, position.float()], dim=1)
        self.is_question = torch.cat([self.is_question, self.is_question.new_zeros(rows, 1)], dim=1)
        self.total, self.longest_gap = torch.cat([self.total, zeros], dim=1), torch.cat([self.longest_gap, zeros], dim=1)


Policy = Callable[[Seen, torch.Generator], Tensor]
"""Scores of cached tokens, (B, T): the lowest are dropped."""


def lazy(seen: Seen, _: torch.Generator) -> Tensor:
    """LazyEviction (2506.15969): H1 + H2, who is not quiet for longer than ever, and who can be quiet for long."""
    gap = seen.longest_gap.clamp(min=1e-6)
    quiet = seen.order.amax(1, keepdim=True) - seen.last
    return 2 * torch.sigmoid(-quiet / gap) + 2 * torch.sigmoid(-1 / gap)


def heavy(seen: Seen, _: torch.Generator) -> Tensor:
    """H2O (2306.14048): who was attended to most, all in all."""
    return seen.total


def recent(seen: Seen, _: torch.Generator) -> Tensor:
    """StreamingLLM (2309.17453): the last tokens, and the first four."""
    return seen.order + _FIRST * (seen.order < _SINKS)


def question_and_recent(seen: Seen, _: torch.Generator) -> Tensor:
    """X, and the last tokens."""
    return seen.order + _FIRST * seen.is_question


def question_and_chance(seen: Seen, generator: torch.Generator) -> Tensor:
    """X, and others by chance ("Random Attention", 2609.03430, finds that as good as what is cleverer)."""
    return chance(seen, generator) + _FIRST * seen.is_question


def chance(seen: Seen, generator: torch.Generator) -> Tensor:
    return torch.rand(seen.total.shape, generator=generator).to(seen.total.device)


POLICIES: dict[str, Policy] = {
    "LazyEviction": lazy,
    "H2O": heavy,
    "sinks and the last": recent,
    "question and the last": question_and_recent,
    "question and chance": question_and_chance,
    "chance": chance,
}


def kept(alive: Tensor, seen: Seen, scores: Tensor, budgets: Tensor, window: int) -> Tensor:
    """Who stays, (B, T) bool, of those who are alive: the last `window`, and the best others up to each row's budget (B,)."""
    newest = seen.order.amax(1, keepdim=True)
    scores = scores.masked_fill(seen.order > newest - window, torch.inf).masked_fill(~alive, -torch.inf)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return alive & (rank < budgets[:, None])
