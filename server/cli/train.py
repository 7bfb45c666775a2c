"""`latentserve train …`."""

from dataclasses import replace
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import NonNegativeInt

from reasoning_net.options import Flat
from reasoning_net.stages import compare as compare_stage
from reasoning_net.stages import grpo as grpo_stage
from reasoning_net.stages import pear as pear_stage
from reasoning_net.stages import sft as sft_stage
from reasoning_net.stages import sweep as sweep_stage
from reasoning_net.stages import traces as traces_stage


def traces(*, config: Annotated[traces_stage.TracesConfig, Flat]) -> dict[str, Any]:
    return traces_stage.main(config)


def sft(*, config: Annotated[sft_stage.SftConfig, Flat]) -> None:
    sft_stage.main(config)


def grpo(*, config: Annotated[grpo_stage.GrpoConfig, Flat]) -> None:
    grpo_stage.main(config)


def sweep(
    *,
    config: Annotated[sweep_stage.SweepConfig, Flat],
    grpo_steps: Annotated[NonNegativeInt, Parameter(help="GRPO steps of each variant; 0: SFT alone.")] = 0,
) -> str:
    if grpo_steps:
        first = config.first
        second = grpo_stage.GrpoConfig(init=first.output, output=first.output, steps=grpo_steps, seed=first.seed)
        config = replace(config, second=second)
    return sweep_stage.main(config)


def compare(*, config: Annotated[compare_stage.CompareConfig, Flat]) -> str:
    return compare_stage.main(config)


def pear(*, config: Annotated[pear_stage.PearConfig, Flat]) -> dict[str, Any]:
    return pear_stage.main(config)
