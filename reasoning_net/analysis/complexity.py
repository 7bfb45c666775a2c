"""How many tokens does a question need, and how much of what could be saved is saved?

    latentserve analyse complexity --output runs/complexity

Token complexity (2503.01141) from answers of many lengths. In the place of the paper's 31 instructions: no thinking, latents,
chains that are cut at the end of each step or at a budget, chains without some of their steps, and whole chains. A latent
counts as a part of a generated token: what it costs.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from reasoning_net.analysis.complexity_figures import Asked, Setting, draw, markdown, summarise
from reasoning_net.analysis.exits import Observer, Written, chain_of
from reasoning_net.analysis.trajectory import drop_steps
from reasoning_net.bundle import Bundle, bundle_of
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.options import Model, Questions, Seed, Share, commas
from reasoning_net.rollouts import Rollouts, Sampling, VllmRollouts, think
from reasoning_net.stages.traces import LinesOf, append_batches
from reasoning_net.tasks import Example, Task, TaskSpec, with_answers
from router.complexity import Pair
from router.policy import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplexityConfig:
    output: Path
    """Directory of answers.jsonl, complexity.json, complexity.md and two plots; a run found there goes on."""
    model: Model = str(DEMO_MODEL)
    bundle: Path | None = None
    """Whose network and probe. Default: the demo's, for the demo's base; else none, and no latents."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 1000
    """Held-out questions."""
    batch_size: PositiveInt = 100
    """Questions between two saves."""
    num_latents: Annotated[tuple[PositiveInt, ...], commas(int)] = (4, 8, 16, 32)
    """Numbers of latents, beside the bundle's."""
    latent_price: NonNegativeFloat = 0.2
    """Generated tokens that a latent counts as; 0.2 by the demo's latencies of single requests."""
    budgets: Annotated[tuple[PositiveInt, ...], commas(int)] = (16, 32, 64, 96, 128, 192, 256, 384)
    """Thinking tokens after which an answer is forced."""
    rates: Annotated[tuple[Share, ...], commas(float)] = (0.1, 0.2, 0.3, 0.5)
    """Shares of steps that are dropped."""
    max_chain_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""
    max_tokens: PositiveInt = 20
    """Limit on an answer without thinking, or a forced one."""
    seed: Seed = 0


def main(config: ComplexityConfig) -> str:
    """Writes `answers.jsonl`, `complexity.json`, `complexity.md`, and the plots; returns the tables."""
    bundle = bundle_of(config.model, config.bundle)
    asked = _ask(config, bundle)
    number = bundle.manifest.num_latent_tokens if bundle else None
    cheap = _latents(number) if number else "direct"
    setting = Setting(bundle.manifest.calibration if bundle else None, Limits(can_think_latent=bool(number)), cheap)
    figures = summarise(asked, setting)
    text = markdown(figures)
    (config.output / "complexity.json").write_text(json.dumps(figures, indent=2) + "\n")
    (config.output / "complexity.md").write_text(text + "\n")
    draw(figures, config.output)
    return text


def _ask(config: ComplexityConfig, bundle: Bundle | None) -> list[Asked]:
    task = config.task.load()
    examples = with_answers(task, config.seed, "test", config.n)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "answers.jsonl"

    def start() -> LinesOf[Example]:
        base = FrozenBase(config.model)
        layout = (bundle.manifest.layout if bundle else base.layout()).token_ids(base.tokenizer)
        asker = Asker(config, base, layout, VllmRollouts(config.model, layout), task, bundle)
        return lambda _, batch: map(asdict, asker.ask(batch))

    append_batches(path, examples, config.batch_size, start, "complexity")
    with path.open() as lines:
        return [_asked(json.loads(line)) for line in itertools.islice(lines, config.n)]


def _asked(line: dict[str, Any]) -> Asked:
    return Asked(**line | {"pairs": tuple(Pair(**pair) for pair in line["pairs"]), "chain": chain_of(line["chain"])})


def _latents(number: int) -> str:
    return f"latent {number}"


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to a forced answer."""

    name: str
    row: int
    prompt: list[int]
    spent: int
    """Tokens of the chain, before the answer."""


class Asker:
    """Asks questions in every way."""

    def __init__(
        self, config: ComplexityConfig, base: FrozenBase, layout: LayoutIds, engine: Rollouts, task: Task, bundle: Bundle | None
    ) -> None:
        self._config, self._base, self._layout, self._engine, self._task = config, base, layout, engine, task
        self._observer = Observer(base, layout, engine, task, bundle, config.max_chain_tokens, config.max_tokens)
        self._net = bundle.reasoning_net() if bundle else None
        self._own = (bundle.manifest.num_latent_tokens if bundle else 0) or 0

    def ask(self, examples: Sequence[Example]) -> Iterator[Asked]:
        written = self._observer.write(examples)
        pairs: list[list[Pair]] = [[] for _ in examples]
        confidences: list[float | None] = [None] * len(examples)
        ways = [way for row, one in enumerate(written) for way in self._ways(row, one, examples[row])]
        sampling = Sampling(self._config.max_tokens, confidence=True)
        replies = self._engine.from_tokens([way.prompt for way in ways], sampling)
        for way, (reply,) in zip(ways, replies, strict=True):
            right = self._task.is_correct(reply.text, examples[way.row].answer)
            pairs[way.row].append(Pair(way.name, way.spent + len(reply.token_ids), right))
            if way.name == "direct":
                confidences[way.row] = reply.confidence
        for number in sorted({*self._config.num_latents, self._own}) if self._net else ():
            own = self._after_latents(examples, written, number, sampling, pairs)
            confidences = own if number == self._own else confidences
        scores = self._observer.scores([one.prompt_ids for one in written])
        for row, chain in enumerate(self._observer.chains(examples, written)):
            exits = [Pair("exit", a.trial.at_tokens + a.trial.tokens, a.right) for a in chain.attempts]
            whole = Pair("explicit", chain.tokens, chain.right)
            of = {name: values[row] for name, values in scores.items()}
            yield Asked(chain.level, (*pairs[row], *exits, whole), chain, of, confidences[row])

    def _ways(self, row: int, one: Written, example: Example) -> Iterator[_Way]:
        yield _Way("direct", row, [*one.prompt_ids, *self._layout.direct], 0)
        for budget in (number for number in self._config.budgets if number < len(one.thinking)):
            yield _Way(f"budget {budget}", row, self._closed(one, one.thinking[:budget]), budget)
        before = list(self._layout.before_latents)
        opens = list(one.thinking[: len(before)]) == before
        tokenizer = self._base.tokenizer
        chain = str(tokenizer.decode(one.thinking[len(before) if opens else 0 :]))
        for rate in self._config.rates:
            left = drop_steps(chain, rate, random.Random(f"{self._config.seed}-{rate}-{example.messages}"))
            kept = [*(before if opens else ()), *tokenizer.encode(left, add_special_tokens=False)]
            yield _Way(f"dropped {rate:g}", row, self._closed(one, kept), len(kept))

    def _closed(self, one: Written, thinking: Sequence[int]) -> list[int]:
        return [*one.opened, *thinking, *self._layout.after_latents]

    def _after_latents(
        self, examples: Sequence[Example], written: Sequence[Written], number: int, sampling: Sampling, pairs: list[list[Pair]]
    ) -> list[float | None]:
        """Adds to the pairs; the probability of each answer's least certain token."""
        prompts = [one.prompt_ids for one in written]
        replies = [reply for (reply,) in self._engine.from_latents(prompts, self._think(prompts, number), sampling)]
        for example, reply, of in zip(examples, replies, pairs, strict=True):
            tokens = len(reply.token_ids) + self._config.latent_price * number
            of.append(Pair(_latents(number), round(tokens, 2), self._task.is_correct(reply.text, example.answer)))
        return [reply.confidence for reply in replies]

    @torch.no_grad()
    def _think(self, prompts: Sequence[list[int]], number: int) -> Tensor:
        assert self._net is not None, "latents are asked for where there is a network"
        return think(self._net, self._base.read(prompts), number)
