"""One HTTP request's way to a mode: what it asked for, handed to the engine; and what happened, handed back."""

import math
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from router.policy import Decision, Mode, Policy, Scores
from router.router import Options


@dataclass(slots=True)
class Stages:
    """Where a request's seconds went; with what follows the engine's last word they are all of them."""

    gateway: float = 0.0
    """Reading, rendering and checking the request, up to the engine."""
    queue: float = 0.0
    """Waiting for room for latents."""
    read: float = 0.0
    """Step 1: prefill, capture, network and probe."""
    network: float = 0.0
    """Within `read`: network and probe, of the batch that this request was in."""
    discarded: float = 0.0
    """A cheap answer that was found doubtful."""
    answer: float = 0.0


@dataclass(slots=True)
class Route:
    """Created with the request, filled in by the engine, read when the response is written."""

    requested: Mode
    num_latents: int | None = None
    """Latents that the client asked for; None: the server's default."""
    options: Options = field(default_factory=Options)
    names_temperature: bool = False
    only_route: bool = False
    """Read and decide, and generate nothing (`/v1/route`)."""
    policy: Policy | None = None
    """Of mode auto."""
    decision: Decision | None = None
    """None until the engine has decided; another one after an escalation."""
    scores: Scores | None = None
    """What step 1 found out; None where there was none."""
    confidence: float | None = None
    """Probability of the least certain token of a cheap answer that was checked."""
    latent_tokens: int = 0
    escalated: bool = False
    restarts: bool = False
    """The answer that is being streamed was found doubtful: the explicit one is to follow."""
    generated_tokens: int = 0
    discarded_tokens: int = 0
    """Of an answer that was found doubtful."""
    prompt_tokens: int = 0
    thinking_tokens: int = 0
    """Of the generated ones, those of the written chain."""
    chain_has_ended: bool = False
    started: float = field(default_factory=time.perf_counter)
    first_byte: float | None = None
    """When a stream's first event left; None without a stream."""
    answered: float | None = None
    """When the engine had nothing more to say."""
    stages: Stages = field(default_factory=Stages)
    abandoned: bool = False
    """The client left before the engine was done."""
    in_flight: set[str] = field(default_factory=set)
    """Engine requests that have not ended."""

    @property
    def mode(self) -> Mode | None:
        return self.decision.mode if self.decision else None

    @property
    def score(self) -> float | None:
        return self.decision.score if self.decision else None

    @property
    def thinks_in_text(self) -> bool:
        """Whether the model's output starts with its chain. Undecided requests may."""
        return self.mode in (None, Mode.EXPLICIT)

    def public(self) -> dict[str, Any]:
        """The `route` object of a response. Its stages are seconds."""
        decision, scores = self.decision, asdict(self.scores) if self.scores else {}
        shown: dict[str, Any] = {
            "requested": self.requested,
            "mode": self.mode,
            "score": _rounded(self.score),
            "threshold": _rounded(decision.threshold) if decision else None,
            "reason": decision.reason if decision else "",
            "latent_tokens": self.latent_tokens,
            "escalated": self.escalated,
            "scores": {name: _rounded(value) for name, value in scores.items() if value is not None},
            "stages": {name: round(seconds, 5) for name, seconds in asdict(self.stages).items()},
        }
        if self.requested is Mode.AUTO:
            shown |= {"policy": self.policy.name if self.policy else None, "discarded_tokens": self.discarded_tokens}
            if self.mode is Mode.EXPLICIT and decision and decision.thinking_budget is not None:
                shown["thinking_budget"] = decision.thinking_budget
        return shown


def _rounded(value: float | None) -> float | None:
    """For JSON, which knows no NaN."""
    return round(value, 4) if value is not None and math.isfinite(value) else None


# Set for each HTTP request; vLLM's serving layer, which stands between the request and the engine, does not know it.
current_route: ContextVar[Route | None] = ContextVar("current_route", default=None)
