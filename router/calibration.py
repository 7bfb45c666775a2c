"""What a bundle knows about its router: what was observed on held-out questions, and what each price of a token gives on them.

A policy has one dial, the price λ: how much P(correct) one generated token must bring. An operator does not think in prices,
so `calibrate` tries many on the observations, and a `Target` (a share of explicit answers, an accuracy, a cost) finds its own.
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from router.exits import ExitRule
from router.policies.diffadapt import Strategies
from router.policy import Mode, RouterError

_EDGE = 1e-4  # of a probability whose logarithm of the odds is taken


class Target(BaseModel):
    """What is asked of the router; exactly one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    explicit_share: float | None = Field(None, ge=0, le=1, description="Share of questions that are thought through in text.")
    accuracy_floor: float | None = Field(None, ge=0, le=1, description="The cheapest setting that is right this often.")
    accuracy_loss: float | None = Field(
        None, ge=0, le=1, description="The cheapest setting that is right at most so much more seldom than explicit thinking."
    )
    mean_tokens: float | None = Field(None, gt=0, description="The best setting that generates no more tokens a question.")
    p95_seconds: float | None = Field(None, gt=0, description="The best setting whose slowest twentieth starts here.")

    @model_validator(mode="after")
    def _one(self) -> "Target":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self


class Point(BaseModel):
    """One price, and what it gave on the calibration's questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    price: float = Field(description="λ: P(correct) that a generated token must bring.")
    accuracy: float
    explicit_share: float
    mean_tokens: float
    escalated_share: float = 0.0
    p95_seconds: float | None = None


class Confidence(BaseModel):
    """P(a cheap answer is correct), given the probe's P(correct) and the probability of the answer's least certain token.

    Logistic regression on the logarithms of both odds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prior_weight: float
    answer_weight: float
    bias: float

    def posterior(self, prior: float, confidence: float) -> float:
        x = self.prior_weight * log_odds(prior) + self.answer_weight * log_odds(confidence) + self.bias
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, x))))


def log_odds(probability: float) -> float:
    probability = max(_EDGE, min(1 - _EDGE, probability))
    return math.log(probability / (1 - probability))


class Calibration(BaseModel):
    """What `router fit` and `router calibrate` leave in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target | None = Field(
        None, description="What the operator asked for; None: the default, explicit's accuracy but a little."
    )
    point: Point
    points: tuple[Point, ...] = Field(description="The curve, dearest tokens last.")
    answer_tokens: dict[Mode, float] = Field(description="Mean tokens of an answer without thinking, by mode.")
    budget_ratio: float = Field(description="Thinking budget ÷ expected tokens of an explicit answer: enough for 999 of 1,000.")
    longest_tokens: float = Field(description="Of explicit answers, the 99th percentile.")
    confidence: Confidence | None = Field(None, description="None: answers are not checked, and never escalated.")
    certain_from: float | None = Field(
        None,
        description="The cheap mode's score from which on an answer is given unchecked: of the calibration's, at most one in "
        "1,000 was wrong. None: all are checked.",
    )
    thinking: Mode = Field(Mode.EXPLICIT, description="What answers the questions that a cheap answer does not suffice for.")
    latent_loss: float = Field(0.005, description="P(correct) that `num_latent_tokens: auto` may lose a question.")
    exit: ExitRule | None = Field(None, description="By which chains of mode auto end early; None: they do not.")
    strategies: Strategies = Strategies()
    score_edges: tuple[float, ...] = Field((), description="Deciles of the cheap mode's score, where they differ.")
    score_shares: tuple[float, ...] = Field((), description="Of the scores between them: the reference for drift.")

    def for_target(self, target: Target) -> Point:
        """The calibrated point that meets the target; raises `RouterError` with what can be reached."""
        return choose(self.points, target)


def choose(points: Sequence[Point], target: Target) -> Point:
    """The point of a curve that meets the target; raises `RouterError` with what can be reached."""
    if target.explicit_share is not None:
        wanted = target.explicit_share
        return min(points, key=lambda p: (abs(p.explicit_share - wanted), p.mean_tokens))
    floor = target.accuracy_floor
    if target.accuracy_loss is not None:
        floor = max(points, key=lambda p: p.explicit_share).accuracy - target.accuracy_loss
    if floor is not None:
        if not (good := [p for p in points if p.accuracy >= floor]):
            raise RouterError(
                f"accuracy_floor {floor} is out of reach: the best setting reaches {max(p.accuracy for p in points)}."
            )
        return min(good, key=lambda p: p.mean_tokens)
    name, limit = ("mean_tokens", target.mean_tokens) if target.mean_tokens is not None else ("p95_seconds", target.p95_seconds)
    known = [(value, p) for p in points if (value := getattr(p, name)) is not None]
    if not known:
        raise RouterError(
            "p95_seconds needs measured seconds. Run `latentserve router calibrate --p95-seconds … --url SERVER`."
        )
    if not (affordable := [p for value, p in known if limit is not None and value <= limit]):
        raise RouterError(f"{name} {limit} is out of reach: the cheapest setting needs {min(value for value, _ in known)}.")
    return max(affordable, key=lambda p: (p.accuracy, -p.mean_tokens))
