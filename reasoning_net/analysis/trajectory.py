"""How much of a written chain an answer needs: drop tokens, or whole steps, of R and answer from the rest.

    latentserve analyse trajectory --model runs/base --traces runs/traces/traces.jsonl --output runs/trajectory

Latent Reasoning Tuning, section 2: each token (or step) is dropped with probability p; the model then answers after what is
left, its thinking closed. The paper's Qwen3 keeps 90.6 of 92.8 % on MATH-500 at p = 0.5.
"""

import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.plots import plot_lines
from reasoning_net.rollouts import Sampling, VllmRollouts
from reasoning_net.stages.traces import Trace, read_traces
from reasoning_net.tables import table
from reasoning_net.tasks import TaskSpec

_BATCH = 256


@dataclass(frozen=True, slots=True)
class TrajectoryConfig:
    model: str
    traces: Path
    output: Path
    task: TaskSpec
    """How answers are checked."""
    n: int = 500
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    seeds: int = 3
    max_tokens: int = 24
    layout: Path | None = None
    seed: int = 0


Drop = Callable[[str, float, random.Random], str]
Figures = dict[str, list[tuple[float, float, float]]]
"""By what is dropped: (rate, accuracy, its standard error)."""


def main(config: TrajectoryConfig) -> str:
    """Writes `trajectory.json` and `trajectory.png`; returns the table."""
    task = config.task.load()
    traces = [trace for trace in read_traces(config.traces) if trace.reply][: config.n]
    if not traces:
        raise StageError(f"{config.traces} has no finished chain.")
    base = FrozenBase(config.model)
    layout = base.layout(config.layout)
    engine = VllmRollouts(config.model, layout.token_ids(base.tokenizer))

    def encode(text: str) -> list[int]:
        return list(base.tokenizer.encode(text, add_special_tokens=False))

    def drop_tokens(reasoning: str, rate: float, rng: random.Random) -> str:
        return str(base.tokenizer.decode([token for token in encode(reasoning) if rng.random() >= rate]))

    def prompt(trace: Trace, reasoning: str) -> list[int]:
        thinking = encode(f"{layout.before_latents}{reasoning}")
        return [*base.prompt_ids(trace.messages), *thinking, *encode(layout.after_latents)]

    def accuracy(drop: Drop, rate: float, seed: int) -> float:
        rng = random.Random(f"{config.seed}-{seed}-{rate}")
        prompts = [prompt(trace, drop(trace.reasoning, rate, rng)) for trace in traces]
        replies = []
        for at in range(0, len(prompts), _BATCH):
            replies += engine.from_tokens(prompts[at : at + _BATCH], Sampling(max_tokens=config.max_tokens))
            progress.update(len(replies) - at)
        answered = zip(replies, traces, strict=True)
        return statistics.fmean(task.is_correct(reply.text, trace.answer) for (reply, *_), trace in answered)

    kinds: dict[str, Drop] = {"tokens": drop_tokens, "steps": drop_steps}
    figures: Figures = {kind: [] for kind in kinds}
    total = len(traces) * config.seeds * len(config.rates) * len(kinds)
    with tqdm(total=total, desc="trajectory", unit="answer") as progress:
        for kind, rate in itertools.product(kinds, config.rates):
            values = [accuracy(kinds[kind], rate, seed) for seed in range(config.seeds)]
            figures[kind].append((rate, *mean_and_error(values)))
    write(config.output, len(traces), figures)
    return markdown(figures)


def write(output: Path, questions: int, figures: Figures) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "trajectory.json").write_text(json.dumps({"questions": questions, "accuracy": figures}, indent=2))
    plot_lines(
        figures, output / "trajectory.png", title="Answers from what is left of the chain", x="share dropped", y="accuracy"
    )


def drop_steps(reasoning: str, rate: float, rng: random.Random) -> str:
    """Steps are lines (in longer chains: paragraphs, as in the paper)."""
    separator = "\n\n" if "\n\n" in reasoning else "\n"
    return separator.join(step for step in reasoning.split(separator) if rng.random() >= rate)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for a single value)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def markdown(figures: Figures) -> str:
    header = ["dropped", *(f"{rate:.0%}" for rate, _, _ in next(iter(figures.values())))]
    rows = ((kind, *(f"{mean:.3f} ± {error:.3f}" for _, mean, error in points)) for kind, points in figures.items())
    return table(header, rows)
