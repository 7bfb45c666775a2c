"""The router of a running server: which policy decides now, what a request may ask of it, and how its scores drift."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from router.calibration import Calibration, Point, Target
from router.drift import Drift
from router.policies import named
from router.policy import Limits, Mode, Policy, RouterError

_PRIVATE = {"point", "score_edges", "score_shares"}  # of a calibration that is shown


class Options(BaseModel):
    """The `router` field of a request with mode auto, and the body of `PUT /v1/router`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str | None = Field(None, description="By name, instead of the server's.")
    explicit_share: float | None = None
    accuracy_floor: float | None = None
    accuracy_loss: float | None = None
    mean_tokens: float | None = None
    p95_seconds: float | None = None
    max_cost: float | None = Field(None, gt=0, description="Generated tokens that this answer may cost at most.")
    escalate: bool = Field(True, description="Whether thinking in text may replace a doubtful answer.")
    early: bool = Field(False, description="Stream a cheap answer before it is checked; a restart event may follow.")

    @property
    def target(self) -> Target | None:
        """Raises `ValueError` for more than one."""
        asked = {name: value for name in Target.model_fields if (value := getattr(self, name)) is not None}
        return Target(**asked) if asked else None

    def limits(
        self, can_think_latent: bool, thinking_cap: int | None, thinking: Mode = Mode.EXPLICIT, max_tokens: int | None = None
    ) -> Limits:
        return Limits(can_think_latent, self.max_cost, thinking_cap, self.escalate, max_tokens, thinking)


class Router:
    """The policy in force. An operator may switch it while the server runs; a request may ask for another calibrated point."""

    def __init__(
        self, calibration: Calibration | None, *, policy: str | None = None, entropy_threshold: float = 0.5,
        has_entropy: bool = True,
    ) -> None:  # fmt: skip
        """`has_entropy`: whether step 1 measures the first token's entropy, which only servers without networks do."""
        self.calibration, self._entropy_threshold, self._has_entropy = calibration, entropy_threshold, has_entropy
        self.drift = Drift(calibration.score_edges, calibration.score_shares) if calibration else Drift((), ())
        self.point: Point | None = None
        self.note: str | None = None
        """What keeps mode auto from its choice, whatever the policy."""
        self.policy: Policy = self._make(policy)
        known = calibration.model_dump(mode="json") if calibration else entropy_threshold
        self.version = _digest({"policy": self.policy.name, "calibration": known})
        """Replicas that have the same decide alike."""
        self._settle(None)

    def policy_for(self, options: Options) -> Policy:
        """Raises `RouterError` for an unknown policy, and for a target that cannot be met."""
        target = options.target
        if target is None:
            return self._make(options.policy) if options.policy else self.policy
        return self._make(options.policy or "utility", self._point(target).price)

    def switch(self, options: Options, version: str | None = None) -> None:
        """Put another policy, or another calibrated point, in force. Nothing changes when it raises `RouterError`.

        `version`: a name for what is then in force; by default a hash of the options.
        """
        target = options.target
        point = self._point(target) if target else None
        policy = self.policy_for(options)
        self.policy = policy
        self.version = version or _digest(options.model_dump(mode="json", include=set(Options.model_fields), exclude_none=True))
        self._settle(point)

    def describe(self) -> dict[str, Any]:
        calibration = self.calibration
        return {
            "policy": self.policy.name,
            "version": self.version,
            "point": self.point.model_dump(exclude_none=True) if self.point else None,
            "advice": self.advice,
            "drift": self.drift.psi,
            "calibration": calibration.model_dump(exclude_none=True, exclude=_PRIVATE) if calibration else None,
        }

    @property
    def advice(self) -> str | None:
        """Where mode auto could decide better."""
        if self.note or self.policy.name != "entropy":
            return self.note
        return (
            "Without a probe, mode auto goes by the entropy of a first token, which says little. A probe takes minutes: "
            "`latentserve router fit`."
        )

    def _settle(self, point: Point | None) -> None:
        uses_price = self.policy.name == "utility"
        self.point = (point or (self.calibration.point if self.calibration else None)) if uses_price else None

    def _point(self, target: Target) -> Point:
        if self.calibration is None:
            raise RouterError(
                "A target needs a calibrated probe, and there is none in the bundle. Fit one with `latentserve router fit`."
            )
        return self.calibration.for_target(target)

    def _make(self, name: str | None, price: float | None = None) -> Policy:
        name = name or ("utility" if self.calibration else "entropy")
        if name == "entropy" and self.calibration and not self._has_entropy:
            raise RouterError("The policy entropy works on servers without a bundle: a probe or a network takes its place.")
        return named.make(name, self.calibration, price, self._entropy_threshold)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
