"""One HTTP request's way to a mode: what it asked for, handed to the engine; and what happened, handed back."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from router.policy import Mode, Scores


@dataclass(slots=True)
class Route:
    """Created with the request, filled in by the engine, read when the response is written."""

    requested: Mode
    num_latents: int | None = None
    """Latents that the client asked for; None: the server's default."""
    mode: Mode | None = None
    """None until the engine has decided."""
    only_route: bool = False
    """Read and decide, and generate nothing (`/v1/route`)."""
    scores: Scores | None = None
    """What step 1 found out; None where there was none."""
    score: float | None = None
    threshold: float | None = None
    reason: str = ""
    latent_tokens: int = 0
    escalated: bool = False
    read_seconds: float | None = None
    """Step 1 as the gateway saw it: prefill, capture, network and probe."""
    network_seconds: float | None = None
    in_flight: set[str] = field(default_factory=set)
    """Engine requests that have not ended."""

    @property
    def thinks_in_text(self) -> bool:
        """Whether the model's output starts with its chain. Undecided requests may."""
        return self.mode in (None, Mode.EXPLICIT)

    def public(self) -> dict[str, Any]:
        """The `route` object of a response."""
        return {
            "requested": self.requested,
            "mode": self.mode,
            "score": None if self.score is None else round(self.score, 4),
            "threshold": self.threshold,
            "reason": self.reason,
            "latent_tokens": self.latent_tokens,
            "escalated": self.escalated,
        }


# Set for each HTTP request; vLLM's serving layer, which stands between the request and the engine, does not know it.
current_route: ContextVar[Route | None] = ContextVar("current_route", default=None)
