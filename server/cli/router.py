"""`latentserve router …`."""

from typing import Annotated, Any

from reasoning_net.options import Flat
from reasoning_net.stages import calibrate as calibrate_stage
from reasoning_net.stages import evaluate_router
from reasoning_net.stages import fit as fit_stage
from reasoning_net.stages import replay as replay_stage


def fit(*, config: Annotated[fit_stage.FitConfig, Flat]) -> dict[str, Any]:
    return fit_stage.main(config)


def calibrate(*, config: Annotated[calibrate_stage.CalibrateConfig, Flat]) -> dict[str, Any]:
    return calibrate_stage.main(config)


def replay(config: Annotated[replay_stage.ReplayConfig, Flat]) -> dict[str, Any]:
    return replay_stage.main(config)


async def evaluate(*, config: Annotated[evaluate_router.RouterEvalConfig, Flat]) -> str:
    return await evaluate_router.main(config)
