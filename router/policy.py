"""Which mode answers: a pure function of what was asked for, the scores and the thresholds."""

import math
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Mode(StrEnum):
    """How a question may be answered; `auto` leaves the choice to the router."""

    AUTO = "auto"
    DIRECT = "direct"
    LATENT = "latent"
    EXPLICIT = "explicit"


class Thresholds(BaseModel):
    """Calibrated data of the bundle. A mode without a threshold is never chosen by `auto`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    direct: float | None = Field(None, description="Answer directly when P(correct | direct) is at least this.")
    latent: float | None = Field(None, description="Answer in latent mode when P(correct | latent) is at least this.")
    entropy: float | None = Field(
        None, description="Without a probe: no explicit thinking when the first answer token's entropy (nats) is at most this."
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """What step 1 found out about a question. None: not known."""

    direct: float | None = None
    latent: float | None = None
    explicit: float | None = None
    tokens: float | None = None
    """Expected tokens of an explicit answer, thinking included."""
    entropy: float | None = None
    """Of the first token of a direct answer, in nats; for bundles without a probe (GlimpRouter's signal)."""


@dataclass(frozen=True, slots=True)
class Decision:
    mode: Mode
    score: float | None
    threshold: float | None
    reason: str


def decide(requested: Mode, scores: Scores, thresholds: Thresholds, *, can_think_latent: bool) -> Decision:
    """The cheapest allowed mode whose score reaches its threshold; explicit thinking when none does.

    A score that is not finite sends the question to explicit thinking, the safest mode.
    """
    cheap = Mode.LATENT if can_think_latent else Mode.DIRECT
    shown = scores.latent if can_think_latent else scores.direct
    if requested is not Mode.AUTO:
        return Decision(requested, shown, None, "requested")
    arms = [(Mode.DIRECT, scores.direct, thresholds.direct)]
    if can_think_latent:
        arms.append((Mode.LATENT, scores.latent, thresholds.latent))
    known = [(mode, score, threshold) for mode, score, threshold in arms if score is not None and threshold is not None]
    for mode, score, threshold in known:
        if not math.isfinite(score):
            return Decision(Mode.EXPLICIT, None, threshold, "score_not_finite")
        if score >= threshold:
            return Decision(mode, score, threshold, "probe_confident")
    if known:
        _, score, threshold = known[-1]
        return Decision(Mode.EXPLICIT, score, threshold, "probe_doubtful")
    if scores.entropy is not None and thresholds.entropy is not None:
        if not math.isfinite(scores.entropy):
            return Decision(Mode.EXPLICIT, None, thresholds.entropy, "score_not_finite")
        low = scores.entropy <= thresholds.entropy
        mode, reason = (cheap, "entropy_low") if low else (Mode.EXPLICIT, "entropy_high")
        return Decision(mode, scores.entropy, thresholds.entropy, reason)
    return Decision(Mode.EXPLICIT, shown, None, "no_score")
