"""Accuracy, tokens and seconds over HTTP: ask a server a task's held-out questions in each mode, and grade the replies.

latentserve eval --n 1000                                          greedy, pass@1
latentserve eval --samples 4 --temperature 0.6 --top-p 0.95 --seeds 3      pass@1 and pass@4, mean ± standard error
latentserve eval --modes latent:16,latent:256,explicit:64,explicit:128     numbers of latents, thinking budgets
latentserve eval --modes explicit:alone,explicit:exit,explicit:glimp,soft:lead      chains that end early, or have help
latentserve eval --remap --orders 4                                        the same sums in other words, and in other orders
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from cyclopts import Parameter
from numpy import percentile
from pydantic import Field, NonNegativeFloat, PositiveInt

from reasoning_net.analysis.trajectory import mean_and_error
from reasoning_net.bundle import Bundle
from reasoning_net.client import Server, connected, gather
from reasoning_net.errors import StageError
from reasoning_net.options import LOCAL_SERVER, Questions, Share, Url, commas
from reasoning_net.plots import plot_lines
from reasoning_net.stages.perturb import Figures, consistencies, consistency_table, orders, remapped, remapped_table
from reasoning_net.stages.perturb import summarise as consistent
from reasoning_net.tables import table
from reasoning_net.tasks import Example, Task, TaskSpec
from router.helper import Policy

K = TypeVar("K")
_MODES = ("direct", "latent", "latent+explicit", "explicit", "auto")
_WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "latent": {"auto": {"num_latent_tokens": "auto"}},
    "explicit": {
        "alone": {"exit": False, "helper": False},
        "exit": {"exit": True, "helper": False},
        **{policy: {"exit": False, "helper": {"policy": policy}} for policy in get_args(Policy)},
    },
    "soft": {
        "gumbel": {"soft": {"noise": "gumbel"}},
        "dirichlet": {"soft": {"noise": "dirichlet", "noise_scale": 4.0}},
        "lead": {"soft": {"switch": "lead"}},
    },
}
"""By mode: arms with a word instead of a number."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a mode, with a number of latents (those that have latents), a budget of thinking tokens, or a way
    of mixing them (mode soft)."""

    mode: str
    number: int | str | None = None

    @classmethod
    def parse(cls, text: str) -> "Arm":
        mode, _, number = text.partition(":")
        if number in _WAYS.get(mode, {}):
            return cls(mode, number)
        if mode not in (*_MODES, "soft") or (number and not number.isdigit()) or (number and mode == "direct"):
            words = ", ".join(f"{mode}:{word}" for mode, ways in _WAYS.items() for word in ways)
            raise StageError(
                f"{text!r} is no arm. Arms are {', '.join(_MODES)}, soft; latent:64, explicit:128 and soft:10 set a number; "
                f"and there are {words}."
            )
        return cls(mode, int(number) if number else None)

    def body(self) -> dict[str, Any]:
        if self.number is None:
            return {"mode": self.mode}
        if isinstance(self.number, str):
            return {"mode": self.mode} | _WAYS[self.mode][self.number]
        if self.mode == "soft":
            return {"mode": self.mode, "soft": {"k": self.number}}
        field = "num_latent_tokens" if self.mode.startswith("latent") else "thinking_token_budget"
        return {"mode": self.mode, field: self.number}

    def __str__(self) -> str:
        return f"{self.mode} ({self.number})" if self.number else self.mode


@dataclass(frozen=True, slots=True)
class Graded:
    """One question, asked once: an answer or several samples, graded."""

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
    remap: bool = False
    """Also ask the questions about other people and things: is it the sums that a mode knows, or the words?"""
    orders: Annotated[int, Field(ge=2)] | None = None
    """Also ask each question in as many orders, greedily: is the entropy of the answers a confidence?"""
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
    others = [task.renamed(example) for example in examples] if config.remap else []
    groups = orders(task, examples, config.orders, config.seed) if config.orders else []
    more: dict[str, tuple[Figures, str]] = {}
    async with connected(config.url, config.concurrency) as server:
        records = await ask(server, config, task, examples)
        if others:
            lost = remapped(shares(records), shares(await ask(server, config, task, others, ", about others")))
            more["remap"] = lost, remapped_table(lost)
        if groups:
            bodies, limits = {str(arm): arm.body() for arm in config.arms}, limits_of(config)
            consistency = consistent(await consistencies(server, task, bodies, groups, limits))
            more["orders"] = consistency, consistency_table(consistency)
    summary = summarise(records)
    if config.output:
        write(config.output, records, summary)
        for name, (of, text) in more.items():
            (config.output / f"{name}.json").write_text(json.dumps(of, indent=2))
            (config.output / f"{name}.md").write_text(text + "\n")
    if config.bundle:
        bundle = Bundle.load(config.bundle)
        figures = {"questions": len(examples), "seed": config.seed, "temperature": config.temperature, "arms": summary}
        bundle.update(scores=bundle.manifest.scores | {"eval": figures})
    return "\n\n".join([markdown(records, summary), *(text for _, text in more.values())])


async def ask(server: Server, config: EvalConfig, task: Task, examples: Sequence[Example], title: str = "") -> list[Graded]:
    """Every question in every arm, as often as there are seeds."""
    records: list[Graded] = []
    for arm, seed in itertools.product(config.arms, range(config.seeds)):
        answers = (grade(server, config, task, arm, seed, *numbered) for numbered in enumerate(examples))
        records += await gather(answers, f"{arm}, seed {seed}{title}")
    return records


def limits_of(config: EvalConfig) -> dict[str, Any]:
    return {"max_tokens": config.max_tokens} if config.max_tokens else {}


def shares(records: Sequence[Graded]) -> dict[str, list[float]]:
    """By arm: the share of right samples of each question, as it was asked."""
    return {arm: [statistics.fmean(one.correct) for one in of] for arm, of in grouped(records, lambda r: r.arm).items()}


async def grade(server: Server, config: EvalConfig, task: Task, arm: Arm, seed: int, index: int, example: Example) -> Graded:
    """Ask one question, and grade the samples of its answer."""
    fields = arm.body() | {"n": config.samples, "temperature": config.temperature, "top_p": config.top_p} | limits_of(config)
    if config.temperature:
        fields["seed"] = seed * 1_000_003 + index
    answer = await server.complete(example.messages, **fields)
    correct = [task.is_correct(reply, example.answer) for reply in answer.replies]
    mode, score = answer.route["mode"], answer.route["score"]
    tokens = answer.tokens / len(correct)
    return Graded(str(arm), seed, example.family, example.level, correct, tokens, answer.seconds, mode, score)


def pass_at_1(records: Sequence[Graded]) -> float:
    """The chance that one sample is right."""
    return statistics.fmean(statistics.fmean(record.correct) for record in records) if records else math.nan


def pass_at_k(records: Sequence[Graded]) -> float:
    """The chance that one of the k samples is right."""
    return statistics.fmean(any(record.correct) for record in records)


def error_of_share(share: float, n: int) -> float:
    """The standard error of a share of n questions."""
    return math.sqrt(share * (1 - share) / n)


def grouped(records: Sequence[Graded], key: Callable[[Graded], K]) -> dict[K, list[Graded]]:
    groups: dict[K, list[Graded]] = {}
    for one in records:
        groups.setdefault(key(one), []).append(one)
    return groups


def summarise(records: Sequence[Graded]) -> dict[str, dict[str, float]]:
    """Per arm: pass@1 and pass@k with their standard errors, tokens, seconds, and the share that was thought through."""
    summary = {}
    for arm, of_arm in grouped(records, lambda r: r.arm).items():
        seeds = grouped(of_arm, lambda r: r.seed).values()
        figures: dict[str, float] = {}
        for name, measure in (("pass@1", pass_at_1), (f"pass@{len(of_arm[0].correct)}", pass_at_k)):
            mean, error = mean_and_error([measure(part) for part in seeds])
            error = error if len(seeds) > 1 else error_of_share(mean, len(of_arm))
            figures |= {name: mean, f"{name} error": error}
        figures["tokens"] = statistics.fmean(r.completion_tokens for r in of_arm)
        seconds = [r.seconds for r in of_arm]
        figures |= {"p50 seconds": statistics.median(seconds), "p95 seconds": float(percentile(seconds, 95))}
        figures["explicit share"] = statistics.fmean("explicit" in r.mode for r in of_arm)
        summary[arm] = {name: round(value, 4) for name, value in figures.items()}
    return summary


def write(output: Path, records: Sequence[Graded], summary: dict[str, dict[str, float]]) -> None:
    """`records.jsonl`, `summary.json`, `table.md`, `accuracy_tokens.png`, `accuracy_level.png`."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "records.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    (output / "summary.json").write_text(json.dumps(summary, indent=2))
    (output / "table.md").write_text(markdown(records, summary) + "\n")
    by_mode: dict[str, list[tuple[float, float, float]]] = {}
    for arm, figures in summary.items():
        by_mode.setdefault(arm.split(" ")[0], []).append((figures["tokens"], figures["pass@1"], figures["pass@1 error"]))
    plot_lines(
        {mode: sorted(points) for mode, points in by_mode.items()}, output / "accuracy_tokens.png",
        title="Accuracy and its price", x="generated tokens a question", y="pass@1", log_x=True,
    )  # fmt: skip
    levels: dict[str, list[tuple[float, float, float]]] = {}
    for (arm, level), part in grouped(records, lambda r: (r.arm, r.level)).items():
        levels.setdefault(arm, []).append((level, p := pass_at_1(part), error_of_share(p, len(part))))
    points = {arm: sorted(points) for arm, points in levels.items()}
    plot_lines(points, output / "accuracy_level.png", title="Accuracy by difficulty", x="level", y="pass@1")


def markdown(records: Sequence[Graded], summary: dict[str, dict[str, float]]) -> str:
    """Three tables: overall, by family, by difficulty."""
    names = list(dict.fromkeys(("pass@1", f"pass@{len(records[0].correct)}")))
    header = ["mode", *names, "generated tokens", "p50 seconds", "p95 seconds", "thought in text"]
    tables = [table(header, ((arm, *_cells(figures, names)) for arm, figures in summary.items()))]
    kinds: dict[str, Callable[[Graded], str | int]] = {"family": lambda r: r.family, "level": lambda r: r.level}
    for kind, key in kinds.items():
        values = sorted({key(record) for record in records}, key=str)
        parts = grouped(records, lambda r, key=key: (r.arm, key(r)))  # type: ignore[misc]
        rows = ((arm, *(f"{pass_at_1(parts.get((arm, value), [])):.2f}" for value in values)) for arm in summary)
        if len(values) > 1:
            tables.append(table([kind, *values], rows))
    return "\n\n".join(tables)


def _cells(figures: dict[str, float], names: Sequence[str]) -> list[str]:
    cells = [f"{figures[name]:.3f} ± {figures[f'{name} error']:.3f}" for name in names]
    seconds = [f"{figures[name]:.3f}" for name in ("p50 seconds", "p95 seconds")]
    return [*cells, f"{figures['tokens']:.1f}", *seconds, f"{figures['explicit share']:.0%}"]
