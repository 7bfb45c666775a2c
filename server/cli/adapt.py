"""`latentserve adapt`."""

from typing import Annotated

from cyclopts import Parameter

from reasoning_net.options import Flat
from reasoning_net.stages import adapt as stage


def adapt(
    model: Annotated[str, Parameter(help="The frozen base: checkpoint directory or Hugging Face id.")],
    *,
    config: Annotated[stage.AdaptConfig, Flat],
) -> str:
    return stage.main(model, config)
