"""What a routing policy is: a pure function of scores and limits. The policies themselves are in `router.policies`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Mode(StrEnum):
    """How a question may be answered; `auto` leaves the choice to the router."""

    AUTO = "auto"
    DIRECT = "direct"
    LATENT = "latent"
    EXPLICIT = "explicit"
    LATENT_EXPLICIT = "latent+explicit"
    """Thinking starts in latents and goes on in text (LaTER, 2605.07315)."""

    @property
    def uses_latents(self) -> bool:
        return self in (Mode.LATENT, Mode.LATENT_EXPLICIT)

    @property
    def thinks_in_text(self) -> bool:
        return self in (Mode.EXPLICIT, Mode.LATENT_EXPLICIT)


NumLatents = int | Literal["auto"]
"""How many latents a client asks for; auto: as few as are expected to suffice."""


class RouterError(ValueError):
    """A policy, a target or a limit that cannot be met, with what can."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What step 1 found out about a question. None: not known."""

    direct: float | None = None
    latent: float | None = None
    explicit: float | None = None
    tokens: float | None = None
    """Expected tokens of an explicit answer, thinking included."""
    entropy: float | None = None
    """Of the first token of a direct answer, in nats; for bundles without a probe."""
    normal: float | None = field(default=None, kw_only=True)
    """P of DiffAdapt's class, where the probe has a head for it; with `hard` and `easy` they add up to 1."""
    hard: float | None = field(default=None, kw_only=True)
    easy: float | None = field(default=None, kw_only=True)
    by_latents: tuple[tuple[int, float], ...] = field(default=(), kw_only=True)
    """(number of latents, P(correct) with as many), fewest first, for numbers below the bundle's."""
    probes: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    """By name, what probes of the operator's own say; no policy of ours reads them."""

    def fewest_latents(self, most: int, max_loss: float) -> int:
        """As many as are expected to lose no more P(correct) than `max_loss` against `most`; that where nothing is known."""
        if self.latent is None or not is_usable(self.latent):
            return most
        enough = self.latent - max_loss
        return next((number for number, correct in self.by_latents if number < most and correct >= enough), most)

    def correct(self, mode: Mode) -> float | None:
        """P(correct | mode)."""
        return self.explicit if mode.thinks_in_text else {Mode.DIRECT: self.direct, Mode.LATENT: self.latent}[mode]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request allows."""

    can_think_latent: bool
    max_cost: float | None = None
    """Generated tokens of an answer: no mode is chosen that is expected to cost more, and thinking is cut there."""
    thinking_cap: int | None = None
    """Thinking tokens that the client, or the server, allows at most."""
    can_escalate: bool = True
    max_tokens: int | None = None
    """Generated tokens that the request, or the model's length, allows; None: nobody knows."""
    thinking: Mode = Mode.EXPLICIT
    """What questions that a cheap answer does not suffice for are answered with."""

    @property
    def cheap(self) -> Mode:
        return Mode.LATENT if self.can_think_latent else Mode.DIRECT

    def budget(self, wanted: float | None) -> int | None:
        """Thinking tokens: what the policy wants, within what the request allows."""
        bounds = [bound for bound in (wanted, self.max_cost, self.thinking_cap) if bound is not None and math.isfinite(bound)]
        return max(1, math.ceil(min(bounds))) if bounds else None


@dataclass(frozen=True, slots=True)
class Decision:
    """How to answer."""

    mode: Mode
    score: float | None
    """P(correct) of the cheaper mode, or its entropy."""
    threshold: float | None
    """What the score had to reach for this question."""
    reason: str
    thinking_budget: int | None = None
    temperature: float | None = None
    """For requests that name none."""
    suffix: str = ""
    """What the thinking starts with."""
    check: bool = False
    """Look at the answer's confidence before it is given: `Policy.check`."""


class Policy(ABC):
    """One way to choose."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As settings and requests call it."""

    @abstractmethod
    def decide(self, scores: Scores, limits: Limits) -> Decision:
        """Before anything is generated."""

    def check(self, scores: Scores, confidence: float, limits: Limits) -> Decision:
        """After a cheap answer whose least certain token had probability `confidence`: keep it, or think in text.

        Called only where `decide` asked for it.
        """
        raise NotImplementedError


def requested(mode: Mode, scores: Scores) -> Decision:
    """A named mode is never overruled."""
    return Decision(mode, None if mode.thinks_in_text else scores.correct(mode), None, "requested")


def is_usable(*values: float | None) -> bool:
    """Whether all scores that are there are finite."""
    return all(value is None or math.isfinite(value) for value in values)
