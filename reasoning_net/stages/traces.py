"""Explicit answers of the base: X, R, Y, whether Y is right, the number of tokens, and the final hidden state of X.

    latentserve train traces --model runs/base --output runs/traces

`--compress keep=0.3 --probe …/importance.safetensors` writes as R the chain's most important steps alone: those of the highest
scores of a probe that `analyse importance` has trained.

`traces.jsonl` holds one answer a line (`--data …/traces.jsonl --preset traces` reads it back), `hidden_states/` the states
of as many questions a file, in the same order. An interrupted run goes on behind its last full batch.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from cyclopts import Parameter
from pydantic import PositiveInt
from safetensors.torch import save_file
from tqdm import tqdm

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Split
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.options import Flat, Internal, LayoutFile, Model, Questions, Seed, Share, ThinkingPrompt
from reasoning_net.precision import found_device
from reasoning_net.rollouts import Reply, Sampling, VllmRollouts
from reasoning_net.step_probe import StepProbe, StepReader
from reasoning_net.tasks import Example, Task, TaskSpec

logger = logging.getLogger(__name__)
T = TypeVar("T")
LinesOf = Callable[[int, Sequence[T]], Iterable[Mapping[str, Any]]]
_KEEP = Parameter(converter=lambda _, tokens: float(tokens[0].value.removeprefix("keep=")), metavar="keep=SHARE")


@dataclass(frozen=True, slots=True)
class TracesSampling(Sampling):
    max_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesConfig:
    output: Path
    """Directory of traces.jsonl and hidden_states/; a run found there goes on."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    split: Split = "train"
    """Of the questions."""
    n: PositiveInt = 1000
    """Questions; fewer where the data has fewer."""
    batch_size: PositiveInt = 256
    """Questions between two saves."""
    sampling: Annotated[TracesSampling, Flat] = field(default_factory=TracesSampling)
    layout: LayoutFile = None
    thinking_prompt: ThinkingPrompt = None
    compress: Annotated[Share | None, _KEEP] = None
    """keep=0.3 writes the most important 30 % of each chain's steps as R. The other figures stay those of the whole chain."""
    probe: Path | None = None
    """importance.safetensors of `analyse importance`, which says what is important."""
    device: Annotated[str, Internal] = field(default_factory=found_device)
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """One explicit answer."""

    messages: list[dict[str, str]]
    reasoning: str
    """R, between the think tags."""
    reply: str
    """Y; empty where the thinking did not end in time."""
    answer: str
    correct: bool
    num_tokens: int
    """Generated: R, the tags and Y."""
    level: int
    family: str
    milestones: tuple[str, ...]


def main(config: TracesConfig) -> dict[str, Any]:
    """Answer and write; returns the counts."""
    task = config.task.load()
    base = FrozenBase(config.model, config.device)
    described = base.layout(config.layout, config.thinking_prompt)
    described.check_explicit()
    if described.placeholder_token_id is None:
        logger.warning("The base reserves no token for latents: `train sft` needs one, see `latentserve check --tokenizer`.")
    layout = described.token_ids(base.tokenizer)
    compress = _compressor(config, base, layout)
    states = config.output / "hidden_states"
    states.mkdir(parents=True, exist_ok=True)
    path = config.output / "traces.jsonl"
    done = keep_whole_batches(path, config.batch_size)
    examples = list(itertools.islice((e for e in task.once(config.seed, config.split) if e.answer), config.n))
    if len(examples) < config.n:
        logger.warning("%s has %d %s questions; n is limited to that.", config.task.name, len(examples), config.split)
    if done < len(examples):
        engine = VllmRollouts(config.model, layout)
        with tqdm(total=len(examples), initial=done, desc="traces", unit="question") as progress, path.open("a") as lines:
            for at in range(done, len(examples), config.batch_size):
                batch = examples[at : at + config.batch_size]
                prompts = [base.prompt_ids(example.messages) for example in batch]
                sampling = replace(config.sampling, seed=config.seed)
                replies = engine.from_tokens([[*prompt, *layout.explicit] for prompt in prompts], sampling)
                last = torch.cat([base.read([prompt]).hidden_states[:, -1] for prompt in prompts])  # (B, d)
                save_file({"last": last.float()}, states / f"{at // config.batch_size:05}.safetensors")
                traces = [_trace(example, reply, task, layout) for example, (reply, *_) in zip(batch, replies, strict=True)]
                if compress:
                    traces = [compress(prompt, trace) for prompt, trace in zip(prompts, traces, strict=True)]
                lines.write("".join(json.dumps(asdict(trace), ensure_ascii=False) + "\n" for trace in traces))
                lines.flush()
                progress.update(len(batch))
    return _counts(read_traces(path))


def _compressor(config: TracesConfig, base: FrozenBase, layout: LayoutIds) -> Callable[[list[int], Trace], Trace] | None:
    if (keep := config.compress) is None and config.probe is None:
        return None
    if keep is None or config.probe is None:
        raise StageError("--compress and --probe belong together: how much to keep, and who says what is important.")
    probe = StepProbe.load(config.probe)
    probe.check_base(config.model)
    reader = StepReader(base, layout, sentences=probe.config.sentences)
    return lambda prompt, trace: replace(trace, reasoning=probe.compressed(reader, prompt, trace.reasoning, keep))


def _trace(example: Example, reply: Reply, task: Task, layout: LayoutIds) -> Trace:
    reasoning, answer = layout.split(reply.text)
    return Trace(
        messages=example.messages,
        reasoning=reasoning.removeprefix("<think>").strip("\n"),
        reply=(answer or "").strip(),
        answer=example.answer,
        correct=answer is not None and task.is_correct(answer, example.answer),
        num_tokens=len(reply.token_ids),
        level=example.level,
        family=example.family,
        milestones=example.milestones,
    )


def keep_whole_batches(path: Path, batch_size: int) -> int:
    """Cut what a killed run wrote of its last batch; the number of traces that stay."""
    *lines, cut = path.read_text().split("\n") if path.exists() else [""]
    whole = len(lines) // batch_size * batch_size
    if cut or whole < len(lines):
        path.write_text("".join(f"{line}\n" for line in lines[:whole]))
    return whole


def append_batches(
    path: Path, items: Sequence[T], batch_size: int, start: Callable[[], LinesOf[T]], title: str, unit: str = "question"
) -> None:
    """Write what `start()` gives for a batch of items, and the place of its first one, as JSON lines behind the last whole
    batch that is there. Nothing is started where nothing is left."""
    if (done := keep_whole_batches(path, batch_size)) >= len(items):
        return
    lines_of = start()
    with tqdm(total=len(items), initial=done, desc=title, unit=unit) as progress, path.open("a") as file:
        for at in range(done, len(items), batch_size):
            batch = items[at : at + batch_size]
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines_of(at, batch)))
            file.flush()
            progress.update(len(batch))


def read_traces(path: Path) -> list[Trace]:
    """Raises `StageError` where there is no such file."""
    if not path.is_file():
        raise StageError(f"There is no file {path}: `latentserve train traces` writes one.")
    with path.open() as lines:  # a chain may hold other characters that `splitlines` takes for ends
        return [Trace(**json.loads(line)) for line in lines]


def _counts(traces: list[Trace]) -> dict[str, Any]:
    tokens = [trace.num_tokens for trace in traces]
    return {
        "questions": len(traces),
        "correct": round(sum(trace.correct for trace in traces) / len(traces), 4),
        "thinking that did not end": sum(not trace.reply for trace in traces),
        "mean tokens": round(sum(tokens) / len(tokens), 1),
        "most tokens": max(tokens),
    }
