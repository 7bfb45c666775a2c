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
from typing import Any

from reasoning_net.config import Conditioner
from reasoning_net.frozen import FrozenBase
from reasoning_net.rollouts import TransformersRollouts, greedy_accuracy
from reasoning_net.stages import grpo, sft
from reasoning_net.tables import table
from reasoning_net.tasks import Task
from reasoning_net.training import seconds_trained


@dataclass(frozen=True, slots=True)
class SweepConfig:
    first: sft.SftConfig
    """The recipe; its output is the sweep's directory."""
    second: grpo.GrpoConfig | None = None
    """Second stage of every variant; its paths follow from the variant's."""
    num_latents: tuple[int, ...] = (64, 128, 256, 512)
    conditioners: tuple[Conditioner, ...] = ("all+embeddings",)
    test_on: int = 1000
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
            batch_size=sft.batch_at_equal_cost(config.first.batch_size, min(config.num_latents), num_latents),
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
