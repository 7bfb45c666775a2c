"""`latentserve bundle`, and `latentserve bundle push` and `pull`."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from reasoning_net.options import Flat
from reasoning_net.stages import push as push_stage
from reasoning_net.stages.pack import PackConfig, main
from server.cli import COMMANDS
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

    return report | check_bundle(Settings(model=config.model, bundle=str(config.output)), packed)


def push(config: Annotated[push_stage.PushConfig, Flat]) -> dict[str, Any]:
    return push_stage.push(config)


def pull(config: Annotated[push_stage.PullConfig, Flat]) -> dict[str, Any]:
    return push_stage.pull(config)


app = App("bundle")
app.default(bundle)
app.command(push, help=COMMANDS["bundle push"])
app.command(pull, help=COMMANDS["bundle pull"])
