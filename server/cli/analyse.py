"""`latentserve analyse …`."""

from typing import Annotated

from reasoning_net.analysis.trajectory import TrajectoryConfig, main
from reasoning_net.options import Flat


def trajectory(*, config: Annotated[TrajectoryConfig, Flat]) -> str:
    return main(config)
