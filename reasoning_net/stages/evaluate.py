"""Accuracy, tokens and seconds over HTTP: ask a server a task's held-out questions in each mode, and grade the replies.

latentserve eval --n 1000                                          greedy, pass@1
latentserve eval --samples 4 --temperature 0.6 --top-p 0.95 --seeds 3      pass@1 and pass@4, mean ± standard error
latentserve eval --modes latent:16,latent:256,explicit:64,explicit:128     numbers of latents, thinking budgets
"""

import asyncio
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
from cyclopts import Parameter
from pydantic import NonNegativeFloat, PositiveInt
from tqdm import tqdm

from reasoning_net.analysis.trajectory import mean_and_error
from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from reasoning_net.options import LOCAL_SERVER, Questions, Share, Url, commas
from reasoning_net.plots import plot_lines
from reasoning_net.tasks import Example, TaskSpec

_MODES = ("direct", "latent", "explicit", "auto")


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a mode, with a number of latents (latent) or a budget of thinking tokens (explicit, auto)."""

    mode: str
    number: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Arm":
        mode, _, number = text.partition(":")
        if mode not in _MODES or (number and not number.isdigit()) or (number and mode == "direct"):
            raise StageError(f"{text!r} is no arm. Arms are {', '.join(_MODES)}; latent:64 and explicit:128 set a number.")
        return cls(mode, int(number) if number else None)

    def body(self) -> dict[str, Any]:
        if self.number is None:
            return {"mode": self.mode}
        return {"mode": self.mode, "num_latent_tokens" if self.mode == "latent" else "thinking_token_budget": self.number}

    def __str__(self) -> str:
        return f"{self.mode} ({self.number})" if self.number else self.mode


@dataclass(frozen=True, slots=True)
class Record:
    """One request."""

    arm: str
    seed: int
    family: str
    level: int
    correct: list[bool]
    """Of each sample."""
    completion_tokens: float
    """A sample's, on average."""
    seconds: float
    mode: str
    """That answered."""
    score: float | None


@dataclass(frozen=True, slots=True)
class EvalConfig:
    url: Url = LOCAL_SERVER
    arms: Annotated[tuple[Arm, ...], Parameter(name="--modes"), commas(Arm.parse)] = tuple(map(Arm, _MODES))
    """Comma-separated; latent:64 sets the number of latents, explicit:128 the thinking budget."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 600
    """Held-out questions."""
    seed: int = 2026
    """Seed of the questions."""
    seeds: PositiveInt = 1
    """Sampling runs, for the standard error."""
    samples: PositiveInt = 1
    """Answers per question (k of pass@k)."""
    temperature: NonNegativeFloat = 0.0
    """0: greedy. The paper: 0.6."""
    top_p: Share = 1.0
    """The paper: 0.95."""
    max_tokens: PositiveInt | None = None
    """Limit on generated tokens."""
    concurrency: PositiveInt = 64
    """Requests at once."""
    output: Path | None = None
    """Directory for records, summary and plots."""
    bundle: Annotated[Path | None, Parameter(name="--record")] = None
    """A bundle that gets the summary into its scores."""


async def main(config: EvalConfig) -> str:
    """Ask everything; returns the tables. A refused request raises `StageError` with the server's words."""
    if config.samples > 1 and config.temperature == 0:
        raise StageError("Several samples of a greedy answer are all the same: give --temperature (the paper: 0.6).")
    task = config.task.load()
    examples = list(itertools.islice(task.examples(config.seed, "test"), config.n))
    records: list[Record] = []
    # Idle connections are given up before the server does, or a request could meet the server closing its connection.
    limits = httpx.Limits(max_connections=config.concurrency, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=config.url, timeout=600, limits=limits) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        common: dict[str, Any] = {"model": model, "n": config.samples, "temperature": config.temperature, "top_p": config.top_p}
        if config.max_tokens:
            common["max_tokens"] = config.max_tokens
        for arm, seed in itertools.product(config.arms, range(config.seeds)):
            gate = asyncio.Semaphore(config.concurrency)
            progress = tqdm(total=len(examples), desc=f"{arm}, seed {seed}", unit="question")

            async def answer(
                index: int, example: Example, arm: Arm = arm, seed: int = seed, progress: tqdm = progress,
                gate: asyncio.Semaphore = gate,
            ) -> Record:  # fmt: skip
                body = common | arm.body() | {"messages": example.messages}
                if config.temperature:
                    body["seed"] = seed * 1_000_003 + index
                async with gate:
                    started = time.perf_counter()
                    response = await ask(client, body)
                    seconds = time.perf_counter() - started
                if response.status_code != 200:
                    raise StageError(f"{config.url} refused a question in mode {arm}: {response.text}")
                progress.update()
                content = response.json()
                replies = [choice["message"]["content"] or "" for choice in content["choices"]]
                return Record(
                    arm=str(arm),
                    seed=seed,
                    family=example.family,
                    level=example.level,
                    correct=[task.is_correct(reply, example.answer) for reply in replies],
                    completion_tokens=(content["usage"]["completion_tokens"] + content["route"].get("discarded_tokens", 0))
                    / len(replies),
                    seconds=seconds,
                    mode=content["route"]["mode"],
                    score=content["route"]["score"],
                )

            records += await asyncio.gather(*(answer(index, example) for index, example in enumerate(examples)))
            progress.close()
    summary = summarise(records)
    if config.output:
        write(config, records, summary)
    if config.bundle:
        bundle = Bundle.load(config.bundle)
        figures = {"questions": len(examples), "seed": config.seed, "temperature": config.temperature, "arms": summary}
        bundle.update(scores=bundle.manifest.scores | {"eval": figures})
    return markdown(records, summary)


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    """One chat completion. As OpenAI's own clients do, it asks again, twice, when the connection breaks."""
    for _ in range(2):
        try:
            return await client.post("/v1/chat/completions", json=body)
        except httpx.TransportError:
            await asyncio.sleep(0.5)
    return await client.post("/v1/chat/completions", json=body)


def pass_at_1(records: Sequence[Record]) -> float:
    """The chance that one sample is right."""
    return statistics.fmean(statistics.fmean(record.correct) for record in records) if records else math.nan


def pass_at_k(records: Sequence[Record]) -> float:
    """The chance that one of the k samples is right."""
    return statistics.fmean(any(record.correct) for record in records)


def summarise(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Per arm: pass@1 and pass@k with their standard errors, tokens, seconds, and the share that was thought through."""
    summary = {}
    for arm in dict.fromkeys(record.arm for record in records):
        of_arm = [record for record in records if record.arm == arm]
        seeds = [[r for r in of_arm if r.seed == seed] for seed in sorted({r.seed for r in of_arm})]
        figures: dict[str, float] = {}
        for name, measure in (("pass@1", pass_at_1), (f"pass@{len(of_arm[0].correct)}", pass_at_k)):
            mean, error = mean_and_error([measure(part) for part in seeds])
            if len(seeds) == 1:  # one run: the error of a share of n questions
                error = math.sqrt(mean * (1 - mean) / len(of_arm))
            figures |= {name: mean, f"{name} error": error}
        figures["tokens"] = statistics.fmean(r.completion_tokens for r in of_arm)
        figures["p50 seconds"] = statistics.median(r.seconds for r in of_arm)
        figures["explicit share"] = statistics.fmean(r.mode == "explicit" for r in of_arm)
        summary[arm] = {name: round(value, 4) for name, value in figures.items()}
    return summary


def write(config: EvalConfig, records: Sequence[Record], summary: dict[str, dict[str, float]]) -> None:
    """`records.jsonl`, `summary.json`, `table.md`, `accuracy_tokens.png`, `accuracy_level.png`."""
    assert config.output is not None
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "records.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    (config.output / "summary.json").write_text(json.dumps(summary, indent=2))
    (config.output / "table.md").write_text(markdown(records, summary) + "\n")
    by_mode: dict[str, list[tuple[float, float, float]]] = {}
    for arm, figures in summary.items():
        by_mode.setdefault(arm.split(" ")[0], []).append((figures["tokens"], figures["pass@1"], figures["pass@1 error"]))
    points = {mode: sorted(values) for mode, values in by_mode.items()}
    plot_lines(
        points, config.output / "accuracy_tokens.png",
        title="Accuracy and its price", x="generated tokens a question", y="pass@1", log_x=True,
    )  # fmt: skip
    levels = {}
    for arm in summary:
        of_arm = [record for record in records if record.arm == arm]
        parts = [(level, [r for r in of_arm if r.level == level]) for level in sorted({r.level for r in of_arm})]
        levels[arm] = [
            (float(level), (p := pass_at_1(part)), math.sqrt(p * (1 - p) / len(part))) for level, part in parts
        ]  # fmt: skip
    plot_lines(levels, config.output / "accuracy_level.png", title="Accuracy by difficulty", x="level", y="pass@1")


def markdown(records: Sequence[Record], summary: dict[str, dict[str, float]]) -> str:
    """Three tables: overall, by family, by difficulty."""
    k = len(records[0].correct)
    names = ["pass@1", *([f"pass@{k}"] if k > 1 else [])]
    lines = [
        f"| mode | {' | '.join(names)} | generated tokens | p50 seconds | answered explicitly |",
        "|---" * (len(names) + 4) + "|",
    ]
    for arm, figures in summary.items():
        cells = [f"{figures[name]:.3f} ± {figures[f'{name} error']:.3f}" for name in names]
        cells += [f"{figures['tokens']:.1f}", f"{figures['p50 seconds']:.3f}", f"{figures['explicit share']:.0%}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    keys: list[tuple[str, Callable[[Record], str | int]]] = [("family", lambda r: r.family), ("level", lambda r: r.level)]
    for title, key in keys:
        values = sorted({key(record) for record in records}, key=str)
        if len(values) == 1:
            continue
        lines += ["", f"| {title} | " + " | ".join(map(str, values)) + " |", "|---" * (len(values) + 1) + "|"]
        for arm in summary:
            parts = ([r for r in records if r.arm == arm and key(r) == value] for value in values)
            lines.append(f"| {arm} | " + " | ".join(f"{pass_at_1(part):.2f}" for part in parts) + " |")
    return "\n".join(lines)
