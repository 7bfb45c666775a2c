"""How a request of ours tells the worker what it is: roles, carried in vLLM's `SamplingParams.extra_args`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from router.policy import Scores

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
    probe_seconds: float
    """Of the batch that this request's latents were computed in."""
    scores: Scores = field(default_factory=Scores)

    NUM_VALUES = 7

    def values(self) -> list[float]:
        of_probe = (self.scores.direct, self.scores.latent, self.scores.explicit, self.scores.tokens)
        first = (float(self.latents_are_finite), self.network_seconds, self.probe_seconds)
        return [*first, *(_ABSENT if s is None else s for s in of_probe)]

    @classmethod
    def of(cls, values: list[float]) -> "Verdict":
        finite, network_seconds, probe_seconds, *of_probe = values[: cls.NUM_VALUES]
        scores = Scores(*(None if value == _ABSENT else value for value in of_probe))
        return cls(bool(finite), network_seconds, probe_seconds, scores)


_ABSENT = -1.0
