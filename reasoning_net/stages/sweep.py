"""The paper's ablations on the demo's recipe, or on any other: numbers of latents, conditioners, SFT against SFT + GRPO.

    latentserve train sweep --model runs/base --output runs/sweep --num-latents 64,128,256,512 --conditioners last,all

SFT steps cost about the same in all variants: with more latents a batch has fewer questions. Every variant is a directory
with its own resumable run; a finished one has a `result.json`. Run the same command again to go on where a sweep was stopped.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveInt

from reasoning_net.batches import batch_at_equal_cost
from reasoning_net.config import Conditioner
from reasoning_net.frozen import FrozenBase
from reasoning_net.options import Flat, Internal, commas
from reasoning_net.rollouts import TransformersRollouts, greedy_accuracy
from reasoning_net.stages import grpo, sft
from reasoning_net.tables import table
from reasoning_net.tasks import Task
from reasoning_net.training import seconds_trained


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSft(sft.SftConfig):
    output: Path
    """Directory of the variants; finished ones are kept."""
    steps: PositiveInt = 600
    """SFT steps of each variant."""
    batch_size: PositiveInt = 64
    """Questions a batch with the fewest latents; with more there are fewer."""
    # What each variant has of its own.
    num_latents: Annotated[int, Internal] = 16
    max_latents: Annotated[int, Internal] = 256
    nested_from: Annotated[float, Internal] = 1.0
    conditioner: Annotated[Conditioner, Internal] = "all+embeddings"


@dataclass(frozen=True, slots=True)
class SweepConfig:
    first: Annotated[SweepSft, Flat]
    """The recipe; its output is the sweep's directory."""
    second: Annotated[grpo.GrpoConfig | None, Internal] = None
    """Second stage of every variant; its paths follow from the variant's."""
    num_latents: Annotated[tuple[PositiveInt, ...], commas(int)] = (64, 128, 256, 512)
    """Comma-separated numbers of latents."""
    conditioners: Annotated[tuple[Conditioner, ...], commas(str)] = ("all+embeddings",)
    """Comma-separated."""
    test_on: PositiveInt = 1000
    """Test questions, answered greedily."""


def main(config: SweepConfig) -> str:
    """Train and test every variant that has no result yet; returns the table, which is also `table.md`."""
    task = config.first.task.load()
    base = FrozenBase(config.first.model)
    rows = []
    for num_latents, conditioner in itertools.product(config.num_latents, config.conditioners):
        directory = config.first.output / f"{num_latents}-{conditioner}"
        stage = replace(
            config.first, output=directory / "sft", num_latents=num_latents, max_latents=num_latents, nested_from=1.0,
            conditioner=conditioner,
            batch_size=batch_at_equal_cost(config.first.batch_size, min(config.num_latents), num_latents),
        )  # fmt: skip
        rows.append(_result(directory / "sft", "SFT", stage, partial(sft.main, stage), task, base, config.test_on))
        if config.second:
            second = replace(
                config.second, model=stage.model, init=stage.output, output=directory / "grpo", num_latents=num_latents,
                task=stage.task,
            )  # fmt: skip
            train = partial(grpo.main, second)
            rows.append(_result(directory / "grpo", "SFT + GRPO", stage, train, task, base, config.test_on))
    table = markdown(rows)
    (config.first.output / "table.md").write_text(table + "\n")
    return table


def _result(
    directory: Path, stage: str, config: sft.SftConfig, train: Callable[[], None], task: Task, base: FrozenBase, test_on: int
) -> dict[str, Any]:
    """The stored result of a variant, or a new one."""
    path = directory / "result.json"
    if not path.exists():
        train()
        net, layout = sft.load_net(directory)
        rollouts = TransformersRollouts(base, layout.token_ids(base.tokenizer))
        examples = list(itertools.islice(task.examples(2026, "test"), test_on))
        row = {
            "latents": config.num_latents,
            "conditioner": config.conditioner,
            "stage": stage,
            "batch": config.batch_size,
            "minutes": round(seconds_trained(directory / "run") / 60, 1),
            "accuracy": round(greedy_accuracy(net, base, rollouts, task, examples, config.num_latents), 4),
        }
        path.write_text(json.dumps(row))
    return dict(json.loads(path.read_text()))


def markdown(rows: list[dict[str, Any]]) -> str:
    return table(list(rows[0]), (row.values() for row in rows))
