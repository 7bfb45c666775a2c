"""`latentserve eval`."""

from typing import Annotated

from reasoning_net.options import Flat
from reasoning_net.stages.evaluate import EvalConfig, main


async def evaluate(*, config: Annotated[EvalConfig | None, Flat] = None) -> str:
    return await main(config or EvalConfig())
