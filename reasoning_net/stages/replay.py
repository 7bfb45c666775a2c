"""What another policy would have made of the decisions in a log.

    latentserve router replay decisions.jsonl --bundle runs/bundle --explicit-share 0.2

Right and wrong are not known of live traffic: accuracy and tokens are the probe's expectations.
"""

import json
import statistics
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.errors import StageError
from reasoning_net.options import Flat
from router.calibration import Calibration, Target
from router.outcomes import Outcome, Spent, apply
from router.policies.named import Name
from router.policy import Limits, Mode, Policy, Scores
from router.router import Options, Router


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    log: Path
    """Decision log of a server (LATENTSERVE_DECISION_LOG)."""
    _: KW_ONLY
    bundle: Path = DEMO_BUNDLE
    """The bundle that it served."""
    policy: Name | None = None
    """Default: utility."""
    target: Annotated[Target | None, Flat] = None

    @property
    def options(self) -> Options:
        return Options(policy=self.policy, **(self.target.model_dump() if self.target else {}))


@dataclass(frozen=True, slots=True)
class Logged:
    """One decision of the log."""

    scores: Scores
    confidence: float | None
    mode: Mode


def main(config: ReplayConfig) -> dict[str, Any]:
    """Decide again. Raises `StageError` for a log without decisions, `RouterError` for a policy that cannot be had."""
    bundle = Bundle.load(config.bundle)
    calibration, can_think_latent = bundle.manifest.calibration, bundle.manifest.reasoning_net is not None
    router = Router(calibration, has_entropy=not can_think_latent)
    logged, unreadable = read(config.log)
    if not logged:
        raise StageError(f"{config.log} holds no decision of mode auto.")
    policy, limits = router.policy_for(config.options), config.options.limits(can_think_latent, None)
    again = [replayed(policy, one, limits, calibration) for one in logged]
    return {
        "decisions": len(logged),
        "unreadable lines": unreadable,
        "policy": policy.name,
        "changed": sum(one.mode is not new.mode for one, new in zip(logged, again, strict=True)),
        "modes in the log": dict(Counter(one.mode.value for one in logged)),
        "modes replayed": dict(Counter(new.mode.value for new in again)),
        "expected accuracy": round(statistics.fmean(new.correct for new in again), 4),
        "expected tokens": round(statistics.fmean(new.tokens for new in again), 1),
        "answers that the log cannot check": sum(
            policy.decide(one.scores, limits).check and one.confidence is None for one in logged
        ),
    }


def read(log: Path) -> tuple[list[Logged], int]:
    """The decisions of mode auto, and how many lines could not be read."""
    if not log.is_file():
        raise StageError(f"There is no log {log}. Servers write one with LATENTSERVE_DECISION_LOG.")
    decisions, unreadable = [], 0
    for line in log.read_text().splitlines():
        try:
            row = json.loads(line)
            if row["requested"] == Mode.AUTO:
                decisions.append(Logged(Scores(**row["scores"]), row["confidence"], Mode(row["mode"])))
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    return decisions, unreadable


def replayed(policy: Policy, logged: Logged, limits: Limits, calibration: Calibration | None) -> Spent:
    """The decision's outcome, as the probe expects it; a checked answer is as likely right as its confidence says."""
    scores = logged.scores
    correct = {mode: scores.correct(mode) or 0.0 for mode in (Mode.DIRECT, Mode.LATENT, Mode.EXPLICIT)}
    prior = scores.correct(limits.cheap)
    if calibration and calibration.confidence and logged.confidence is not None and prior is not None:
        correct[limits.cheap] = calibration.confidence.posterior(prior, logged.confidence)
    tokens = dict(calibration.answer_tokens) if calibration else {}
    tokens = dict.fromkeys((Mode.DIRECT, Mode.LATENT), 0.0) | tokens | {Mode.EXPLICIT: scores.tokens or 0.0}
    return apply(policy, Outcome(scores, logged.confidence, correct, tokens), limits)
