"""Explicit answers of the base: X, R, Y, whether Y is right, the number of tokens, and the final hidden state of X.

    latentserve train traces --model runs/base --output runs/traces

`--compress keep=0.3 --probe …/importance.safetensors` writes as R the chain's most important steps alone: those of the highest
scores of a probe that `analyse importance` has trained.

`--best-of 8 --select aslec-drop --temperature 0.6` samples eight chains of each question and records the most natural of those
that led to a right answer, for bases that are to be trained on chains; `selection.jsonl` has all their scores.

`traces.jsonl` holds one answer a line (`--data …/traces.jsonl --preset traces` reads it back), `hidden_states/` the states
of as many questions a file, in the same order. An interrupted run goes on behind its last full batch.
"""

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

from reasoning_net.boundaries import Boundaries
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Split
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.naturalness import ChainScore, Choice, best, figures, scores
from reasoning_net.options import Flat, Internal, LayoutFile, Model, Questions, Seed, Share, ThinkingPrompt
from reasoning_net.precision import engine_dtype, found_device
from reasoning_net.rollouts import Reply, Sampling, VllmRollouts
from reasoning_net.step_probe import StepProbe, StepReader
from reasoning_net.tasks import Example, Task, TaskSpec, with_answers

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
    best_of: PositiveInt = 1
    """Chains that are sampled of each question, of which one is recorded."""
    select: Choice = "mean"
    """The most natural one by mean log-probability, which prefers long steps; or without that bias: aslec-drop leaves out the
    first token of each step, aslec-casl what the density of steps explains."""
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
    base = FrozenBase(config.model, config.device, engine_dtype(torch.device(config.device)))
    described = base.layout(config.layout, config.thinking_prompt)
    described.check_explicit()
    if described.placeholder_token_id is None:
        logger.warning("The base reserves no token for latents: `train sft` needs one, see `latentserve check --tokenizer`.")
    layout = described.token_ids(base.tokenizer)
    compress = _compressor(config, base, layout)
    if config.best_of > 1 and not config.sampling.temperature:
        raise StageError("--best-of needs chains that differ: say --temperature 0.6, too.")
    states = config.output / "hidden_states"
    states.mkdir(parents=True, exist_ok=True)
    path = config.output / "traces.jsonl"
    done = keep_whole_batches(path, config.batch_size)
    examples = with_answers(task, config.seed, config.split, config.n)
    if len(examples) < config.n:
        logger.warning("%s has %d %s questions; n is limited to that.", config.task.name, len(examples), config.split)
    if done < len(examples):
        engine = VllmRollouts(config.model, layout)
        end_of_thinking = base.tokenizer.encode(layout.end_of_thinking or "", add_special_tokens=False)
        boundaries, chosen = Boundaries(base.tokenizer), config.output / "selection.jsonl"
        if config.best_of > 1:
            keep_whole_batches(chosen, config.batch_size, most=done)
        with tqdm(total=len(examples), initial=done, desc="traces", unit="question") as progress, path.open("a") as lines:
            for at in range(done, len(examples), config.batch_size):
                batch = examples[at : at + config.batch_size]
                prompts = [base.prompt_ids(example.messages) for example in batch]
                is_choice = config.best_of > 1
                sampling = replace(
                    config.sampling, seed=config.seed, copies=config.best_of, confidence=is_choice, logprobs=int(is_choice)
                )
                replies = engine.from_tokens([[*prompt, *layout.explicit] for prompt in prompts], sampling)
                last = torch.cat([base.read([prompt]).hidden_states[:, -1] for prompt in prompts])  # (B, d)
                save_file({"last": last.float()}, states / f"{at // config.batch_size:05}.safetensors")
                pairs = zip(batch, replies, strict=True)
                groups = [[_trace(example, reply, task, layout) for reply in group] for example, group in pairs]
                if is_choice:
                    scored = [[chain_score(reply, boundaries, end_of_thinking) for reply in group] for group in replies]
                    traces = _most_natural(groups, scored, config.select)
                    with chosen.open("a") as file:
                        file.write("".join(json.dumps([asdict(one) for one in group]) + "\n" for group in scored))
                else:
                    traces = [trace for (trace,) in groups]
                if compress:
                    traces = [compress(prompt, trace) for prompt, trace in zip(prompts, traces, strict=True)]
                lines.write("".join(json.dumps(asdict(trace), ensure_ascii=False) + "\n" for trace in traces))
                lines.flush()
                progress.update(len(batch))
    counts = _counts(read_traces(path))
    return counts | figures(read_scores(config.output / "selection.jsonl")) if config.best_of > 1 else counts


def chain_score(reply: Reply, boundaries: Boundaries, end_of_thinking: Sequence[int]) -> ChainScore:
    """Of what a reply, with its log-probabilities, thinks in text."""
    assert reply.logprobs is not None, "they were asked for"
    ids, width = reply.token_ids, len(end_of_thinking)
    ends = (at for at in range(len(ids)) if width and tuple(ids[at : at + width]) == tuple(end_of_thinking))
    chain = ids[: next(ends, len(ids))]
    log_probs = [next(iter(step.values())).logprob for step in reply.logprobs[: len(chain)]]
    return ChainScore.of(chain, log_probs, boundaries)


def _most_natural(groups: list[list[Trace]], scored: list[list[ChainScore]], choice: Choice) -> list[Trace]:
    """One chain of each question; aslec-casl looks at the whole batch."""
    flat = torch.tensor(scores([chain for group in scored for chain in group], choice))
    rows = zip(groups, flat.split([len(group) for group in scored]), strict=True)
    return [group[best(values, [trace.correct for trace in group])] for group, values in rows]


def read_scores(path: Path) -> list[list[ChainScore]]:
    with path.open() as lines:
        return [[ChainScore(**one) for one in json.loads(line)] for line in lines]


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


def keep_whole_batches(path: Path, batch_size: int, most: int | None = None) -> int:
    """Cut what a killed run wrote of its last batch, and what is behind `most` lines; the number of traces that stay."""
    *lines, cut = path.read_text().split("\n") if path.exists() else [""]
    whole = len(lines) // batch_size * batch_size
    whole = whole if most is None else min(whole, most)
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
