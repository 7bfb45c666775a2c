"""When a chain of thought may end early: a rule over trial answers that are forced at the ends of its steps.

A trial is made beside the chain, and thrown away; or, with `closes`, it is how the chain goes on where the model would most
nearly end it, and is thrown away only if it is not sure. Trials and their confidence are DEER's (2504.15895): it ends a chain
where a trial's tokens are on average surer than 0.95. Entropy that falls from trial to trial, or does not, is CER's
(2508.20395). That trials must agree is ours: a chain's running value is a sure answer, too, until the next step changes it.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, model_validator

Exits = Literal["off", "auto", "always"]
"""Whose chains may end early: nobody's; those of mode auto, by a calibrated rule; those of mode explicit, too."""


class Ending(StrEnum):
    """Why a chain ended before the model closed it."""

    ANSWER = "answer"
    """Trials are sure, and agree."""
    PLATEAU = "plateau"
    """More thinking makes trials no surer, and they are sure enough."""
    GIVE_UP = "give_up"
    """More thinking makes trials no surer, and they are far from it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """An answer that was forced after a part of a chain."""

    at_tokens: int
    """Of the chain, before it."""
    answer: str
    tokens: int
    """Of the answer."""
    least: float
    """Probability of its least certain token."""
    mean: float
    """Geometric mean of its tokens' probabilities."""
    entropy: float
    """Mean over its tokens, in nats."""

    @classmethod
    def of(cls, at_tokens: int, answer: str, logprobs: Sequence[float], entropy: float = math.nan) -> "Trial":
        """By the log-probability of each of its tokens."""
        least, mean = math.exp(min(logprobs)), math.exp(statistics.fmean(logprobs))
        return cls(at_tokens, answer.strip(), len(logprobs), least, mean, entropy)


class ExitRule(BaseModel):
    """What `router calibrate --exit-loss` finds. The defaults are for models that nothing was measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence: float = Field(0.95, ge=0, le=1, description="What a trial's geometric mean must exceed.")
    agreeing: int = Field(2, ge=1, description="Trials in a row that must give the same answer.")
    first: float = Field(0.6, ge=0, description="Share of the expected chain before the first trial; no probe: five steps.")
    closes: float = Field(
        0.0, ge=0, le=1, description="P(the model ends its thinking here) from which on it does; the answer is the trial."
    )
    gap_tokens: int = Field(16, ge=1, description="Between two trials, at least.")
    max_trials: int = Field(10, ge=1, le=100)
    trial_tokens: int = Field(20, ge=1, le=100, description="Limit on a trial.")
    plateau_entropy: float | None = Field(None, ge=0, description="Flat over three trials, and below: an answer.")
    give_up_entropy: float | None = Field(None, ge=0, description="No fall over four trials, and above: no hope.")

    @model_validator(mode="after")
    def _one_kind(self) -> "ExitRule":
        if self.closes and not (self.plateau_entropy is None and self.give_up_entropy is None):
            raise ValueError("closes has trials whose entropy is not known: leave out plateau_entropy and give_up_entropy")
        return self


_FIRST_STEP = 5
_CLOSES = (0.0, 1e-6, 1e-5, 2e-5, 1e-4, 1e-3, 0.01, 0.1)
"""Small, and telling: a model that never stops before its last line may still think of it where a chain could end."""
_FLAT_NATS = 0.01


def is_due(
    rule: ExitRule, at_tokens: int, step: int, trials: Sequence[Trial], expected_tokens: float | None, closes: float = 1.0
) -> bool:
    """Whether the end of this step, counted from 1, is worth a trial. `expected_tokens`: of the whole chain; `closes`: P(the
    model ends its thinking here)."""
    if len(trials) >= rule.max_trials or closes < rule.closes or at_tokens < earliest(rule, trials, expected_tokens):
        return False
    return rule.closes > 0 or _is_known(expected_tokens) or step >= _FIRST_STEP


def earliest(rule: ExitRule, trials: Sequence[Trial], expected_tokens: float | None) -> int:
    """Tokens of a chain, before which its next trial is not made."""
    after_last = trials[-1].at_tokens + rule.gap_tokens if trials else 0
    return max(after_last, math.ceil(rule.first * expected_tokens) if _is_known(expected_tokens) else 0)


def _is_known(expected_tokens: float | None) -> TypeGuard[float]:
    return expected_tokens is not None and math.isfinite(expected_tokens)


def ending(rule: ExitRule, trials: Sequence[Trial]) -> Ending | None:
    """What the trials so far say; None: think on."""
    if not trials:
        return None
    last, recent = trials[-1], trials[-rule.agreeing :]
    agree = len(recent) == rule.agreeing and all(trial.answer == last.answer for trial in recent)
    if agree and last.mean > rule.confidence:
        return Ending.ANSWER
    entropies = [trial.entropy for trial in trials]
    if rule.plateau_entropy is not None and len(trials) >= 3:
        flat = entropies[-3] - entropies[-1] < _FLAT_NATS
        if flat and entropies[-1] <= rule.plateau_entropy:
            return Ending.PLATEAU
    if rule.give_up_entropy is not None and len(trials) >= 4:
        falls = entropies[-1] < entropies[-4]
        if not falls and entropies[-1] > rule.give_up_entropy:
            return Ending.GIVE_UP
    return None


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer that was forced, and what is known of it afterwards."""

    trial: Trial
    right: bool
    same: bool
    """As what the whole chain answers."""
    closes: float
    """P(the thinking ends here | the chain so far)."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A whole chain, and the answers after its parts."""

    level: int
    right: bool
    thinking_tokens: int
    """Up to the end of thinking."""
    tokens: int
    expected_tokens: float | None
    """What the probe expected; None without one."""
    attempts: tuple[Attempt, ...]
    """By step."""

    @property
    def first_right(self) -> Attempt | None:
        """The first attempt from which on all are right: the oracle's."""
        staying = list(itertools.takewhile(lambda attempt: attempt.right, reversed(self.attempts)))
        return staying[-1] if staying else None


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a chain under a rule."""

    right: bool
    tokens: int
    """Of the chain, the answer and all trials."""
    trials: int
    ending: Ending | None


def play(rule: ExitRule, chain: Chain) -> Played:
    """A chain under a rule, from what is known about it. Trials were observed without the rule's own limit on their tokens."""
    tried = list[Attempt]()
    for step, attempt in enumerate(chain.attempts, 1):
        trials = [one.trial for one in tried]
        if not is_due(rule, attempt.trial.at_tokens, step, trials, chain.expected_tokens, attempt.closes):
            continue
        tried.append(attempt)
        if why := ending(rule, [*trials, attempt.trial]):
            spent = sum(one.tokens for one in (trials if rule.closes else [*trials, attempt.trial]))  # the last is the answer
            return Played(attempt.right, attempt.trial.at_tokens + attempt.trial.tokens + spent, len(tried), why)
    spent = sum(one.trial.tokens for one in tried)
    return Played(chain.right, chain.tokens + spent, len(tried), None)


def played(rule: ExitRule, chains: Sequence[Chain]) -> dict[str, float]:
    of = [play(rule, chain) for chain in chains]
    return {
        "right": round(statistics.fmean(one.right for one in of), 4),
        "tokens": round(statistics.fmean(one.tokens for one in of), 1),
        "trials": round(statistics.fmean(one.trials for one in of), 2),
        "ended": round(statistics.fmean(one.ending is not None for one in of), 4),
    }


def grid() -> Iterator[ExitRule]:
    """Rules that are worth trying."""
    for first, closes, confidence, agreeing, give_up in itertools.product(
        (0.0, 0.4, 0.6, 0.8), _CLOSES, (0.5, 0.9, 0.95, 0.99, 0.999), (1, 2, 3), (None, 0.1, 0.3)
    ):
        if closes and give_up is not None:
            continue
        yield ExitRule(first=first, closes=closes, confidence=confidence, agreeing=agreeing, give_up_entropy=give_up)


def calibrated(chains: Sequence[Chain], max_loss: float) -> ExitRule | None:
    """The cheapest rule that is right at most so much more seldom than whole chains; None where they are the cheapest."""
    whole = statistics.fmean(chain.right for chain in chains)
    cheapest, found = statistics.fmean(chain.tokens for chain in chains), None
    for rule in grid():
        of = played(rule, chains)
        if of["tokens"] < cheapest and of["right"] >= whole - max_loss:
            cheapest, found = of["tokens"], rule
    return found
