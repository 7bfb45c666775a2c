"""Accuracy against cost: the curve of every policy over its dial, beside single modes, a random mix and an oracle."""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from router.calibration import Calibration
from router.outcomes import Outcome, Spent, apply
from router.policies.always import Always
from router.policies.diffadapt import DiffAdapt
from router.policies.entropy import Entropy
from router.policies.utility import Utility
from router.policy import Limits, Mode, Policy

_POINTS = 101
Curve = list[tuple[float, float]]
"""(mean cost, accuracy)."""


def prices(calibration: Calibration, outcomes: Sequence[Outcome], limits: Limits) -> list[float]:
    """Prices whose shares of explicit answers are spread evenly from 1 to 0.

    The first ones are negative, where cheap answers are often the better ones: explicit ones are then wanted for themselves.
    """
    gains = []
    for o in outcomes:
        cheap = o.scores.correct(limits.cheap) or 0.0
        if calibration.confidence is not None and o.confidence is not None:
            cheap = calibration.confidence.posterior(cheap, o.confidence)
        sure = 1.0 if o.scores.explicit is None else o.scores.explicit
        gains.append((sure - cheap) / (o.scores.tokens or calibration.longest_tokens))
    quantiles = torch.tensor(gains).quantile(torch.linspace(0, 1, _POINTS))
    return sorted({0.0, *quantiles.tolist(), float(quantiles[-1]) * 1.01 + 1e-9})


def play(outcomes: Sequence[Outcome], calibration: Calibration, limits: Limits) -> dict[str, list[list[Spent]]]:
    """Per policy, for each setting of its dial (one, where it has none), what it makes of every outcome."""

    def under(policies: Iterable[Policy], limits: Limits = limits) -> list[list[Spent]]:
        return [[apply(policy, o, limits) for o in outcomes] for policy in policies]

    checked = prices(calibration, outcomes, limits)
    unchecked = prices(calibration.model_copy(update={"confidence": None}), outcomes, limits)
    entropies = sorted(o.scores.entropy for o in outcomes if o.scores.entropy is not None)
    played = {
        "utility": under(Utility(calibration, price) for price in checked),
        "utility, no check": under(
            (Utility(calibration, price) for price in unchecked), Limits(limits.can_think_latent, can_escalate=False)
        ),
        "DiffAdapt": under([DiffAdapt(calibration.strategies)]),
    }
    if entropies:
        thresholds = [entropies[round(at * (len(entropies) - 1) / 20)] for at in range(21)]
        played["first-token entropy"] = under(map(Entropy, thresholds))
    for mode in dict.fromkeys((Mode.DIRECT, limits.cheap, Mode.EXPLICIT)):
        played[f"always {mode}"] = under([Always(mode)])
    return played


def policy_curves(
    played: dict[str, list[list[Spent]]], outcomes: Sequence[Outcome], limits: Limits, cost: str
) -> dict[str, Curve]:
    """Per policy the points (mean cost, accuracy) that its dial can reach; one point for a policy without a dial."""

    def point(spent: Sequence[Spent]) -> tuple[float, float]:
        return (statistics.fmean(getattr(one, cost) for one in spent), statistics.fmean(one.correct for one in spent))

    curves = {name: sorted(map(point, settings)) for name, settings in played.items()}
    curves["oracle"] = sorted(oracle(outcomes, limits, cost))
    curves["random mix"] = sorted([*curves[f"always {limits.cheap}"], *curves["always explicit"]])
    return curves


def oracle(outcomes: Sequence[Outcome], limits: Limits, cost: str) -> Curve:
    """Who knows every answer: explicit thinking only where it mends a wrong one, cheapest first."""
    cheap = limits.cheap

    def price(outcome: Outcome, mode: Mode) -> float:
        return float(getattr(outcome, cost)[mode])

    total, right = sum(price(o, cheap) for o in outcomes), sum(o.correct[cheap] for o in outcomes)
    curve = [(total / len(outcomes), right / len(outcomes))]
    mended = [o for o in outcomes if o.correct[Mode.EXPLICIT] > o.correct[cheap]]
    for outcome in sorted(mended, key=lambda o: price(o, Mode.EXPLICIT)):
        total += price(outcome, Mode.EXPLICIT) - price(outcome, cheap)
        right += outcome.correct[Mode.EXPLICIT] - outcome.correct[cheap]
        curve.append((total / len(outcomes), right / len(outcomes)))
    return curve


def areas(curve: Curve, outcomes: Sequence[Outcome], limits: Limits, cost: str) -> dict[str, float]:
    """AUC: mean accuracy over the costs between always cheap (0) and always explicit (1). APGR (RouteLLM): the same of the
    recovered part of the gap in accuracy, where there is one; a random mix has 0.5. Empty for a single point."""
    if len(curve) < 2:
        return {}
    ends = (limits.cheap, Mode.EXPLICIT)
    low, high = (statistics.fmean(getattr(o, cost)[mode] for o in outcomes) for mode in ends)
    weak, strong = (statistics.fmean(o.correct[mode] for o in outcomes) for mode in ends)
    auc = float(best_at(curve, np.linspace(low, high, 201)).mean())
    return {"AUC": round(auc, 4)} | ({"APGR": round((auc - weak) / (strong - weak), 4)} if strong > weak else {})


def best_at(curve: Curve, costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The accuracy at those mean costs: mixes of two neighbouring settings lie on the line between them."""
    x, y = np.array(sorted(curve)).T
    return np.interp(costs, x, y)
