"""One HTTP request's way to a mode: what it asked for, handed to the engine; and what happened, handed back."""

import math
import time
from collections.abc import Iterator
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
    probe: float = 0.0
    """Within `read`: reasoning network and probe, of the batch that this request was in."""
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
    ended: float | None = None
    """When the last byte left."""
    status: int | None = None
    """Of HTTP."""
    failure: str | None = None
    """What came instead of an answer."""
    stages: Stages = field(default_factory=Stages)
    abandoned: bool = False
    """The client left before the engine was done."""
    request_id: str = ""
    """The response's; before there is one the engine's; before that the client's X-Request-Id, or one in its place."""
    trace_id: str | None = None
    """None without tracing."""
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

    @property
    def seconds(self) -> float:
        """From the receipt to the last byte."""
        assert self.ended is not None, "asked of requests that have ended"
        return self.ended - self.started

    def timeline(self) -> Iterator[tuple[str, float, float]]:
        """(stage, start, end). One stage follows the other, so where a stage was not, it has no length."""
        start = self.started
        for stage in ("gateway", "queue", "read", "discarded"):
            end = start + getattr(self.stages, stage)
            yield stage, start, end
            start = end
        if self.answered is not None:
            yield "answer", self.answered - self.stages.answer, self.answered
            yield "respond", self.answered, self.started + self.seconds

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

    def record(self) -> dict[str, Any]:
        """What is written down about a request that has ended: never its text."""
        stages = {stage: end - start for stage, start, end in self.timeline()}
        stages |= {"network": self.stages.network, "probe": self.stages.probe}
        return {
            "request_id": self.request_id,
            **({"trace_id": self.trace_id} if self.trace_id else {}),
            **self.public(),
            "confidence": self.confidence,
            "prompt_tokens": self.prompt_tokens,
            "thinking_tokens": self.thinking_tokens,
            "generated_tokens": self.generated_tokens,
            "stages": {stage: round(seconds, 5) for stage, seconds in stages.items()},
            "status": self.status,
            "failure": self.failure,
            "seconds": _rounded(self.seconds),
        }


def _rounded(value: float | None) -> float | None:
    """For JSON, which knows no NaN."""
    return round(value, 4) if value is not None and math.isfinite(value) else None


# Set for each HTTP request; vLLM's serving layer, which stands between the request and the engine, does not know it.
current_route: ContextVar[Route | None] = ContextVar("current_route", default=None)
