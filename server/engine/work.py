"""What a pass asks of the worker, carried in vLLM's `SamplingParams.extra_args`, and what the worker answers.

A pass is one engine request. `Read` and `Overlay` name the latents by a key that only this server knows; `Forget` drops those
that were computed and are not wanted. `Think` is both in one: its request is read up to the end of the question, and goes on
with the latents that were computed there. `Mix` is for decoded tokens.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from router.policy import Scores
from router.soft import SoftThinking

WORK_KEY = "latentserve"


@dataclass(frozen=True, slots=True)
class Read:
    """Take the final hidden states of the prompt, score it and, when `num_latents` is not 0, compute z and keep it."""

    kind: ClassVar = "read"
    key: str
    num_latents: int
    keep_states: bool = False
    """Keep H_X for `latentserve_inspect`: parity checks."""
    explains: bool = False
    """Keep what the latents say for `latentserve_reading`."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """Write z over the prompt rows from `start` on; `copies` engine requests (`n` of the API) share one z, which is dropped
    when the last of them ends."""

    kind: ClassVar = "overlay"
    key: str
    num_latents: int
    start: int
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Think:
    """Read the first `length` tokens of the prompt as `Read` does, where a step of the scheduler ends for it, and write z over
    the rows from `start` on. z is dropped when the request ends."""

    kind: ClassVar = "think"
    key: str
    num_latents: int
    length: int
    start: int
    explains: bool = False
    """As of `Read`."""


@dataclass(frozen=True, slots=True)
class Forget:
    """The answer does without latents: drop z."""

    kind: ClassVar = "forget"
    key: str


@dataclass(frozen=True, slots=True)
class Mix:
    """Think in mixtures of tokens: write them over the rows of decoded tokens, from `start` on, until thinking ends."""

    kind: ClassVar = "mix"
    key: str
    start: int
    """Length of the prompt."""
    opening: int | None
    closing: int | None
    """The one token that thinking starts, and ends, with; None where there is no such token."""
    seed: int
    soft: dict[str, Any]
    """`SoftThinking`, as it travels."""

    @property
    def settings(self) -> SoftThinking:
        return SoftThinking.model_validate(self.soft)


@dataclass(frozen=True, slots=True)
class Close:
    """End the chain at the first end of a step where the model would end it with so much probability, once."""

    kind: ClassVar = "close"
    start: int
    """Length of the prompt."""
    token: int
    """That ends thinking."""
    probability: float
    earliest: int
    """Tokens of the chain, before which it goes on."""


@dataclass(frozen=True, slots=True)
class TokenKinds:
    """What the worker must know of a vocabulary."""

    numbers: dict[int, int]
    """Tokens that are whole numbers."""
    literal: list[int]
    """Those that are single letters, digits or signs."""
    ends: list[int]
    """Those that end a step of a chain."""
    blank: list[int]
    """Those of white space."""


Work = Read | Overlay | Think | Forget | Mix | Close
_KINDS: dict[str, type[Work]] = {cls.kind: cls for cls in (Read, Overlay, Think, Forget, Mix, Close)}


def to_extra_args(work: Work) -> dict[str, Any]:
    return {WORK_KEY: {"kind": work.kind, **asdict(work)}}


def work_of(extra_args: dict[str, Any] | None) -> Work | None:
    """None for a request that asks nothing of us."""
    fields = dict((extra_args or {}).get(WORK_KEY) or {})
    return _KINDS[fields.pop("kind")](**fields) if fields else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the worker found in a `Read` or a `Think`. It travels in the log-probabilities of the first token that the pass
    samples, after those of the token itself, so it costs neither an engine step nor a call."""

    latents_are_finite: bool
    network_seconds: float
    probe_seconds: float
    """Of the batch that this request's latents were computed in."""
    scores: Scores = field(default_factory=Scores)

    @staticmethod
    def num_values(ladder: tuple[int, ...], probes: tuple[str, ...] = ()) -> int:
        """`ladder`: the numbers of latents that the probe has an output for; `probes`: the outputs of the operator's own."""
        return 3 + len(_SCORED) + len(ladder) + len(probes)

    def values(self) -> list[float]:
        by_latents = (correct for _, correct in self.scores.by_latents)
        of_probe = (*(getattr(self.scores, name) for name in _SCORED), *by_latents)
        first = (float(self.latents_are_finite), self.network_seconds, self.probe_seconds)
        return [*first, *(_ABSENT if s is None else s for s in of_probe), *self.scores.probes.values()]

    @classmethod
    def of(cls, logprobs: list[float], ladder: tuple[int, ...], probes: tuple[str, ...] = ()) -> "Verdict":
        """From the log-probabilities of the first token, of which the first one is its own."""
        finite, network_seconds, probe_seconds, *of_probe = logprobs[1 : 1 + cls.num_values(ladder, probes)]
        first = len(_SCORED)
        of_own = dict(zip(probes, of_probe[first + len(ladder) :], strict=True))
        scored = {name: None if value == _ABSENT else value for name, value in zip(_SCORED, of_probe[:first], strict=True)}
        rungs = tuple((number, value) for number, value in zip(ladder, of_probe[first:], strict=False) if value != _ABSENT)
        scores = Scores(**scored, by_latents=rungs, probes=of_own)
        return cls(bool(finite), network_seconds, probe_seconds, scores)


_ABSENT = -1.0
_SCORED = ("direct", "latent", "explicit", "tokens", "normal", "hard", "easy")
