"""How well scores rank answers, and how true they are as probabilities. Labels (n,) are shares of right answers."""

import math

import torch
from torch import Tensor


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the chance that a right answer is scored above a wrong one; ties count half.

    NaN where all are right, or all wrong.
    """
    _, group = scores.unique(return_inverse=True)  # ascending
    right, wrong = (torch.zeros(int(group.max()) + 1, dtype=torch.double) for _ in range(2))
    right.index_add_(0, group, labels.double())
    wrong.index_add_(0, group, 1 - labels.double())
    pairs = right.sum() * wrong.sum()
    below = wrong.cumsum(0) - wrong
    return float((right * (below + wrong / 2)).sum() / pairs) if pairs else math.nan


def kendall(one: Tensor, other: Tensor) -> float:
    """τ-b of two figures (n,): how far they put the same things in the same order, ties counted out. NaN for a constant."""
    signs, others = ((values[:, None] - values).sign().double() for values in (one, other))
    ranked = (signs.square().sum() * others.square().sum()).sqrt()
    return float((signs * others).sum() / ranked) if ranked else math.nan


def brier(scores: Tensor, labels: Tensor) -> float:
    """Mean squared error of P(correct) as a forecast of each answer."""
    return float((labels * (1 - scores) ** 2 + (1 - labels) * scores**2).mean())


def _bins(scores: Tensor) -> list[Tensor]:
    """Which scores are in each tenth of [0, 1] that holds any, (n,) bool each."""
    tenths = (scores * 10).long().clamp(0, 9)
    return [tenths == index for index in tenths.unique()]


def reliability(scores: Tensor, labels: Tensor) -> list[tuple[float, float, float]]:
    """(mean prediction, share of right answers, its standard error) in each tenth of [0, 1] that holds predictions."""
    known = ~labels.isnan()
    scores, labels = scores[known], labels[known]
    shares = [(float(scores[part].mean()), float(labels[part].mean()), int(part.sum())) for part in _bins(scores)]
    return [(score, share, math.sqrt(share * (1 - share) / n)) for score, share, n in shares]


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Expected calibration error over ten bins of equal width."""
    return sum(abs(float((scores - labels)[part].sum())) for part in _bins(scores)) / len(scores)


def known(value: float) -> float | None:
    """A figure for JSON, to four digits; None where there was nothing to tell apart."""
    return None if math.isnan(value) else round(value, 4)
