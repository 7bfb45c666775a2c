"""What continuous thoughts are worth: test questions, asked of a base that `coconut` has trained, beside the base it began as.

Two controls ask whether the thoughts are needed (after 2604.04902, which finds them not to be): zeros in their place, and the
thoughts of another question with as many operations. Answers are greedy.

Shapes: B batch, N thoughts, d hidden size.
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.base import BaseConfig
from reasoning_net.demo.coconut import CoconutConfig, think, train
from reasoning_net.demo.questions import Question, final_number, questions
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LATENT_TOKEN
from reasoning_net.plots import Points, plot_lines
from reasoning_net.rollouts import think as network_latents
from reasoning_net.stages.sft import load_net
from reasoning_net.tables import table
from reasoning_net.training import seconds_trained, training_device

_BATCH = 50
_REPLY_TOKENS, _CHAIN_TOKENS = 24, 512
_END_THINK = "</think>"


@dataclass(frozen=True, slots=True)
class Asked:
    """How one way to think did."""

    name: str
    right: dict[int, float]
    """By the number of operations."""
    questions: int
    """Of each number of operations."""
    passes: float
    """Forward passes, one after another, until the first token of the reply: the mean."""

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.right.values())

    def error(self, right: float) -> float:
        """The standard error of a share of the questions of one number of operations."""
        return math.sqrt(right * (1 - right) / self.questions)


Replies = list[tuple[str, int]]
"""Of a batch: what is written, and the passes before the reply."""
Way = Callable[[Sequence[Question]], Replies]


def main(config: BaseConfig, study: CoconutConfig) -> str:
    """Train, ask, and write coconut.json, coconut.md and coconut.png beside the checkpoint; returns the table."""
    train(config, study)
    per_steps = study.questions // study.max_steps
    asked = {
        steps: list(itertools.islice(questions(config.seed, "test", steps=(steps, steps), families=config.families), per_steps))
        for steps in range(1, study.max_steps + 1)
    }
    ways = dict(_ways(config, study))
    with tqdm(total=len(ways) * study.max_steps * per_steps, desc="answers", unit="answer") as progress:
        found = [ask(name, way, asked, progress) for name, way in ways.items()]
    record = {
        "filler": study.filler, "stages": study.stages, "fillers": study.fillers(study.stages + 1), "families": config.families,
        "seconds": round(seconds_trained(config.output / "run"), 1), "of the processor": config.processor_seconds,
        "answers": [asdict(one) | {"accuracy": round(one.accuracy, 4)} for one in found],
    }  # fmt: skip
    (config.output / "coconut.json").write_text(json.dumps(record, indent=2))
    (config.output / "coconut.md").write_text(f"{markdown(found)}\n")
    lines: dict[str, Points] = {
        one.name: [(steps, right, one.error(right)) for steps, right in one.right.items()] for one in found
    }
    title = "Continuous thoughts" if study.filler == "thoughts" else f"The control: {study.filler}"
    plot_lines(lines, config.output / "coconut.png", title=title, x="operations of a question", y="accuracy")
    return markdown(found)


def ask(name: str, way: Way, asked: dict[int, list[Question]], progress: tqdm) -> Asked:
    """Questions by the number of operations, in batches of like size: another question's thoughts need another question."""
    right, passes = {}, list[int]()
    for steps, examples in asked.items():
        replies: Replies = []
        for rows in torch.arange(len(examples)).tensor_split(math.ceil(len(examples) / _BATCH)):
            replies += way([examples[row] for row in rows])
            progress.update(len(rows))
        graded = zip(replies, examples, strict=True)
        right[steps] = statistics.fmean(final_number(reply) == example.answer for (reply, _), example in graded)
        passes += [count for _, count in replies]
    return Asked(name, right, len(passes) // len(asked), statistics.fmean(passes))


def markdown(found: Sequence[Asked]) -> str:
    header = ["thinking", "right", *(f"{steps} step{'s' * (steps > 1)}" for steps in found[0].right), "passes before the reply"]
    return table(
        header,
        (
            [one.name, f"{one.accuracy:.3f}", *(f"{right:.2f} ± {one.error(right):.2f}" for right in one.right.values()),
             f"{one.passes:.0f}"]
            for one in found
        ),
    )  # fmt: skip


def _ways(config: BaseConfig, study: CoconutConfig) -> Iterator[tuple[str, Way]]:
    start = FrozenBase(config.start or DEMO_MODEL, training_device())
    yield "the base it began as, chains in text", _in_text(start)
    yield "the same, direct", _direct(start)
    trained, number = FrozenBase(config.output, training_device()), study.fillers(study.stages + 1)
    if study.filler == "thoughts" and number:
        yield f"thoughts: {number}", _after_thoughts(trained, number, lambda thoughts: thoughts)
        yield "zeros in their place", _after_thoughts(trained, number, torch.zeros_like)
        yield "another question's", _after_thoughts(trained, number, lambda thoughts: thoughts.roll(1, dims=0))
    elif study.filler == "pauses" and number:
        yield f"pauses: {number}", _after_pauses(trained, number)
    else:
        yield "trained, nothing in the chain's place", _after_pauses(trained, 0)
    if study.net:
        yield f"latents: {study.net_latents}", _after_latents(start, study.net, study.net_latents)


def _in_text(base: FrozenBase) -> Way:
    layout, end = base.layout().token_ids(base.tokenizer), base.tokenizer.convert_tokens_to_ids(_END_THINK)

    def way(examples: Sequence[Question]) -> Replies:
        prompt = base.read(_prompts(base, examples))
        opening = base.between(layout.before_latents, _nothing(base, examples), ())
        written = base.generate(prompt, opening, _CHAIN_TOKENS)
        chains = [tokens.index(end) if end in tokens else len(tokens) for tokens in written]
        replies = (base.tokenizer.decode(tokens[chain:]) for tokens, chain in zip(written, chains, strict=True))
        # Two more: the question, and what ends the thinking.
        return [(reply, chain + 2) for reply, chain in zip(replies, chains, strict=True)]

    return way


def _direct(base: FrozenBase) -> Way:
    layout = base.layout().token_ids(base.tokenizer)

    def way(examples: Sequence[Question]) -> Replies:
        prefix = base.between(layout.direct, _nothing(base, examples), ())
        return _replies(base, examples, prefix, passes=1)

    return way


def _after_thoughts(base: FrozenBase, number: int, change: Callable[[Tensor], Tensor]) -> Way:
    layout = base.layout().token_ids(base.tokenizer)

    @torch.no_grad()
    def way(examples: Sequence[Question]) -> Replies:
        opened = base.read([[*prompt, *layout.before_latents] for prompt in _prompts(base, examples)])
        thoughts, _ = think(base, opened, number)
        return _replies(base, examples, base.prefix(layout, change(thoughts)), passes=number + 1)

    return way


def _after_pauses(base: FrozenBase, number: int) -> Way:
    layout = base.layout().token_ids(base.tokenizer)
    pause = torch.tensor(base.tokenizer.convert_tokens_to_ids(LATENT_TOKEN), device=base.device)

    def way(examples: Sequence[Question]) -> Replies:
        pauses = base.embed(pause).expand(len(examples), number, -1)
        return _replies(base, examples, base.prefix(layout, pauses), passes=1)

    return way


def _after_latents(base: FrozenBase, directory: Path, number: int) -> Way:
    """The question, the network, and the latents are a pass each."""
    net, layout = load_net(directory)
    net, ids = net.to(base.device), layout.token_ids(base.tokenizer)

    @torch.no_grad()
    def way(examples: Sequence[Question]) -> Replies:
        latents = network_latents(net, base.read(_prompts(base, examples)), number)
        return _replies(base, examples, base.prefix(ids, latents), passes=3)

    return way


def _prompts(base: FrozenBase, examples: Sequence[Question]) -> list[list[int]]:
    return [base.prompt_ids([{"role": "user", "content": one.question}]) for one in examples]


def _nothing(base: FrozenBase, examples: Sequence[Question]) -> Tensor:
    return torch.zeros(len(examples), 0, base.hidden_size, device=base.device)


def _replies(base: FrozenBase, examples: Sequence[Question], prefix: Tensor, passes: int) -> Replies:
    written = base.generate(base.read(_prompts(base, examples)), prefix, _REPLY_TOKENS)
    return [(base.tokenizer.decode(tokens), passes) for tokens in written]
