"""Policies by the names that settings, requests and commands use."""

from typing import Literal, get_args

from router.calibration import Calibration
from router.policies.always import Always
from router.policies.diffadapt import DiffAdapt
from router.policies.entropy import Entropy
from router.policies.utility import Utility
from router.policy import Mode, Policy, RouterError

Name = Literal["utility", "diffadapt", "entropy", "always-direct", "always-latent", "always-explicit"]
NAMES = get_args(Name)


def make(name: str, calibration: Calibration | None, price: float | None = None, entropy_threshold: float = 0.5) -> Policy:
    """The policy of that name. Raises `RouterError` for an unknown one, and for one that lacks its calibrated probe."""
    if name not in NAMES:
        raise RouterError(f"There is no policy {name!r}. Policies are {', '.join(NAMES)}.")
    if name.startswith("always-"):
        return Always(Mode(name.removeprefix("always-")))
    if name == "entropy":
        return Entropy(entropy_threshold)
    if calibration is None:
        raise RouterError(
            f"The policy {name} needs a calibrated probe, and there is none in the bundle. Fit one with `latentserve router "
            "fit`, or choose the policy entropy."
        )
    if name == "diffadapt":
        return DiffAdapt(calibration.strategies)
    return Utility(calibration, calibration.point.price if price is None else price)
