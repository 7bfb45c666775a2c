"""`latentserve bundle`."""

from typing import Annotated, Any

import torch
from cyclopts import Parameter

from reasoning_net.options import Flat
from reasoning_net.stages.pack import PackConfig, main
from server.settings import Settings


def bundle(
    *,
    config: Annotated[PackConfig, Flat],
    check: Annotated[bool, Parameter(help="Start the engine and compare it with what training saw.")] = True,
) -> dict[str, Any]:
    packed = main(config)
    report = {"bundle": str(config.output), "fingerprint": packed.fingerprint()}
    if not check:
        return report
    from server.check import check_bundle  # vLLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return report | check_bundle(Settings(model=config.model, bundle=str(config.output), device=device), packed)
