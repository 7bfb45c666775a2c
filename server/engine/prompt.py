"""How a request of ours tells the worker what it is: roles, carried in vLLM's `SamplingParams.extra_args`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

ROLE_KEY = "latentserve"


@dataclass(frozen=True, slots=True)
class Role:
    """What the worker does for one engine request.

    `read` (step 1): take the final hidden states of the prompt, score it and, when `num_latents` is not 0, compute z and
    keep it under `key`. `answer` (step 3): overlay z on the prompt rows from `start` on; `copies` engine requests
    (`n` of the API) share one z, which is dropped when the last of them ends. `forget`: the answer does without; drop z.
    """

    kind: Literal["read", "answer", "forget"]
    key: str
    num_latents: int
    start: int = 0
    copies: int = 1
    keep_states: bool = False
    """Keep H_X for `latentserve_inspect`: parity checks."""

    def extra_args(self) -> dict[str, Any]:
        return {ROLE_KEY: asdict(self)}

    @classmethod
    def of(cls, extra_args: dict[str, Any] | None) -> "Role | None":
        fields = (extra_args or {}).get(ROLE_KEY)
        return cls(**fields) if fields else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the worker found in step 1. It travels in the log-probabilities of the one token that step 1 samples (and
    nobody reads), so it costs neither an engine step nor a call."""

    latents_are_finite: bool
    network_seconds: float
    """Of the batch that this request's latents were computed in."""
    direct: float | None = None
    latent: float | None = None
    explicit: float | None = None
    tokens: float | None = None

    NUM_VALUES = 6

    def values(self) -> list[float]:
        scores = (self.direct, self.latent, self.explicit, self.tokens)
        return [float(self.latents_are_finite), self.network_seconds, *(_ABSENT if s is None else s for s in scores)]

    @classmethod
    def of(cls, values: list[float]) -> "Verdict":
        scores = (None if value == _ABSENT else value for value in values[2:6])
        return cls(bool(values[0]), values[1], *scores)


_ABSENT = -1.0
