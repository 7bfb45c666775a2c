"""What questions' answers were like, and what a policy would have made of them: for calibration, evaluation and replay."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from router.calibration import Point
from router.policy import Limits, Mode, Policy, Scores

_ANSWERS = (Mode.DIRECT, Mode.LATENT, Mode.EXPLICIT)
SCORES = ("direct", "latent", "explicit", "tokens")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one question's answers were like: the rows that prices are tried on."""

    scores: Scores
    confidence: float | None
    """Probability of the least certain token of the cheap answer."""
    correct: dict[Mode, float]
    tokens: dict[Mode, float]
    seconds: dict[Mode, float] = field(default_factory=dict)
    """Empty where none were measured."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a policy made of one outcome."""

    mode: Mode
    correct: float
    tokens: float
    seconds: float
    escalated: bool


def apply(policy: Policy, outcome: Outcome, limits: Limits) -> Spent:
    """Play one question under a policy, from what is known about its answers."""
    decision, wasted, wasted_seconds, escalated = policy.decide(outcome.scores, limits), 0.0, 0.0, False
    if decision.check and outcome.confidence is not None:
        tried = decision.mode
        decision = policy.check(outcome.scores, outcome.confidence, limits)
        escalated = decision.mode is not tried
        if escalated:
            wasted, wasted_seconds = outcome.tokens[tried], outcome.seconds.get(tried, 0.0)
    correct, tokens = outcome.correct[decision.mode], outcome.tokens[decision.mode]
    seconds = outcome.seconds.get(decision.mode, 0.0)
    budget = decision.thinking_budget
    if decision.mode.thinks_in_text and budget is not None and tokens > budget:
        # What a chain that was cut would have answered is not known; on the demo next to nothing.
        correct, tokens, seconds = 0.0, float(budget), seconds * budget / tokens
    return Spent(decision.mode, correct, tokens + wasted, seconds + wasted_seconds, escalated)


def summarise(spent: Sequence[Spent], price: float) -> Point:
    timed = any(one.seconds for one in spent)
    return Point(
        price=price,
        accuracy=round(statistics.fmean(one.correct for one in spent), 4),
        explicit_share=round(statistics.fmean(one.mode is Mode.EXPLICIT for one in spent), 4),
        mean_tokens=round(statistics.fmean(one.tokens for one in spent), 2),
        escalated_share=round(statistics.fmean(one.escalated for one in spent), 4),
        p95_seconds=round(statistics.quantiles((one.seconds for one in spent), n=20)[-1], 4) if timed else None,
    )


def curve(
    policy_at: Callable[[float], Policy], prices: Sequence[float], outcomes: Sequence[Outcome], limits: Limits
) -> list[Point]:
    """What each price gives, cheapest tokens first."""
    return [summarise([apply(policy_at(price), o, limits) for o in outcomes], price) for price in sorted(prices)]


def to_tensors(outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
    """One column (n,) per figure, NaN where it is not known: `calibration.safetensors` of a bundle."""
    columns: dict[str, list[float | None]] = {f"scores.{name}": [getattr(o.scores, name) for o in outcomes] for name in SCORES}
    columns["confidence"] = [o.confidence for o in outcomes]
    for mode in _ANSWERS:
        columns[f"correct.{mode}"] = [o.correct.get(mode) for o in outcomes]
        columns[f"tokens.{mode}"] = [o.tokens.get(mode) for o in outcomes]
    return {name: torch.tensor([math.nan if v is None else v for v in values]) for name, values in columns.items()}


def from_tensors(columns: Mapping[str, Tensor]) -> list[Outcome]:
    """The outcomes of `to_tensors`."""
    known = {name: [None if math.isnan(v) else v for v in column.tolist()] for name, column in columns.items()}

    def by_mode(figure: str, row: int) -> dict[Mode, float]:
        return {mode: value for mode in _ANSWERS if (value := known[f"{figure}.{mode}"][row]) is not None}

    return [
        Outcome(
            Scores(*(known[f"scores.{name}"][row] for name in SCORES)),
            known["confidence"][row],
            by_mode("correct", row),
            by_mode("tokens", row),
        )
        for row in range(len(known["confidence"]))
    ]
