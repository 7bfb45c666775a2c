"""Accuracy over HTTP: ask a running server a task's held-out questions in each mode, and grade the replies.

latentserve eval --url http://127.0.0.1:8000 --n 600 --seed 2026
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from reasoning_net.tasks import TASKS, Example


@dataclass(frozen=True, slots=True)
class Arm:
    """One column of the table: a mode, and in latent mode a number of latents."""

    mode: str
    num_latents: int | None = None

    def __str__(self) -> str:
        return f"{self.mode} ({self.num_latents})" if self.num_latents else self.mode


@dataclass(frozen=True, slots=True)
class Record:
    arm: str
    family: str
    level: int
    correct: bool
    completion_tokens: int
    mode: str
    score: float | None


@dataclass(frozen=True, slots=True)
class EvalConfig:
    url: str
    arms: tuple[Arm, ...]
    task: str = "demo"
    n: int = 600
    seed: int = 2026
    concurrency: int = 64
    output: Path | None = None
    """Where the records go, as JSON lines."""


async def main(config: EvalConfig) -> list[Record]:
    """Ask everything, greedily; a failed request raises."""
    task = TASKS[config.task]()
    examples = list(itertools.islice(task.examples(config.seed, "test"), config.n))
    records: list[Record] = []
    limits = httpx.Limits(max_connections=config.concurrency)
    async with httpx.AsyncClient(base_url=config.url, timeout=600, limits=limits) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        for arm in config.arms:
            gate = asyncio.Semaphore(config.concurrency)
            progress = tqdm(total=len(examples), desc=str(arm), unit="question")

            async def answer(
                example: Example, arm: Arm = arm, progress: tqdm = progress, gate: asyncio.Semaphore = gate
            ) -> Record:
                body: dict[str, Any] = {"model": model, "messages": example.messages, "mode": arm.mode, "temperature": 0}
                if arm.num_latents:
                    body["num_latent_tokens"] = arm.num_latents
                async with gate:
                    response = await client.post("/v1/chat/completions", json=body)
                response.raise_for_status()
                progress.update()
                content = response.json()
                reply = content["choices"][0]["message"]["content"] or ""
                route, tokens = content["route"], content["usage"]["completion_tokens"]
                correct = task.is_correct(reply, example.answer)
                return Record(str(arm), example.family, example.level, correct, tokens, route["mode"], route["score"])

            records += await asyncio.gather(*(answer(example) for example in examples))
            progress.close()
    if config.output:
        config.output.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    return records


def accuracy(records: Iterable[Record]) -> float:
    hits = [record.correct for record in records]
    return sum(hits) / len(hits) if hits else float("nan")


def mean_tokens(records: Iterable[Record]) -> float:
    tokens = [record.completion_tokens for record in records]
    return sum(tokens) / len(tokens)


def markdown(records: list[Record]) -> str:
    """Three tables: overall, by family, by number of steps."""
    arms = list(dict.fromkeys(record.arm for record in records))
    of = {arm: [record for record in records if record.arm == arm] for arm in arms}
    lines = ["| mode | accuracy | generated tokens | answered explicitly |", "|---|---|---|---|"]
    for arm in arms:
        share = sum(record.mode == "explicit" for record in of[arm]) / len(of[arm])
        lines.append(f"| {arm} | {accuracy(of[arm]):.3f} | {mean_tokens(of[arm]):.1f} | {share:.0%} |")
    keys: list[tuple[str, Callable[[Record], str | int]]] = [("family", lambda r: r.family), ("steps", lambda r: r.level)]
    for title, key in keys:
        values = sorted({key(record) for record in records}, key=str)
        lines += ["", f"| {title} | " + " | ".join(map(str, values)) + " |", "|---" * (len(values) + 1) + "|"]
        for arm in arms:
            cells = (f"{accuracy(r for r in of[arm] if key(r) == value):.2f}" for value in values)
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
