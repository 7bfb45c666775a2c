"""When could a chain have ended? Force an answer at the end of each step, and see which are right, and how sure.

    latentserve analyse exits --output runs/exits

What `router calibrate --exit-loss` reads, and the studies that it rests on: DEER (2504.15895), which ends a chain where a
trial's tokens are sure, and CER (2508.20395), whose claim is that the entropy of an answer falls along right chains and not
along wrong ones. The oracle ends a chain at the first step from which its answer stays right.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PositiveInt

from reasoning_net.boundaries import Boundaries
from reasoning_net.bundle import Bundle, bundle_of
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Split
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.options import Model, Questions, Seed
from reasoning_net.plots import plot_lines
from reasoning_net.rollouts import Reply, Rollouts, Sampling, VllmRollouts, think
from reasoning_net.stages.traces import LinesOf, append_batches
from reasoning_net.tables import table
from reasoning_net.tasks import Example, Task, TaskSpec, with_answers
from router.exits import Attempt, Chain, ExitRule, Trial, played
from router.figures import auroc, known

_TOP = 20  # of a distribution, for its entropy and for the end of thinking
_CONFIDENCES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_STARTS = ((0.0, 0.0), (0.6, 0.0), (0.0, 1e-5))
"""Of trials: from a share of the expected chain on, from a P(thinking ends here) on."""
_SIGNALS = ("least", "mean", "entropy", "closes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitsConfig:
    output: Path
    """Directory of chains.jsonl, exits.json and exits.png; a run found there goes on."""
    model: Model = str(DEMO_MODEL)
    bundle: Path | None = None
    """Whose probe says how long a chain is expected to be. Default: the demo's, for the demo's base; else none."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 1000
    """Questions."""
    split: Split = "test"
    """That they are of."""
    batch_size: PositiveInt = 100
    """Questions between two saves."""
    max_chain_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""
    trial_tokens: PositiveInt = 20
    """Limit on a forced answer."""
    seed: Seed = 0


def main(config: ExitsConfig) -> str:
    """Writes `chains.jsonl`, `exits.json` and `exits.png`; returns the tables."""
    chains = _observe(config)
    figures = summarise(chains)
    (config.output / "exits.json").write_text(json.dumps(figures, indent=2) + "\n")
    curves = {
        f"{agreeing} in a row agree": [(point["tokens"], point["right"], 0.0) for point in of]
        for agreeing, of in itertools.groupby(figures["curve"], lambda point: point["agreeing"])
    }
    plot_lines(
        curves, config.output / "exits.png", title="Chains that end early", x="tokens a question, trials counted", y="right"
    )  # fmt: skip
    return markdown(figures)


def read_chains(path: Path) -> list[Chain]:
    """What `analyse exits` has observed. Raises `StageError` for a file that it did not write."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [chain_of(line) for line in lines]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StageError(f"{path} has no chains: {error}. `latentserve analyse exits` writes them.") from error


def chain_of(line: dict[str, Any]) -> Chain:
    attempts = tuple(Attempt(**attempt | {"trial": Trial(**attempt["trial"])}) for attempt in line["attempts"])
    return Chain(**line | {"attempts": attempts})


def _observe(config: ExitsConfig) -> list[Chain]:
    task, base = config.task.load(), FrozenBase(config.model)
    examples = with_answers(task, config.seed, config.split, config.n)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "chains.jsonl"

    def start() -> LinesOf[Example]:
        bundle = bundle_of(config.model, config.bundle)
        layout = (bundle.manifest.layout if bundle else base.layout()).token_ids(base.tokenizer)
        engine = VllmRollouts(config.model, layout)
        observer = Observer(base, layout, engine, task, bundle, config.max_chain_tokens, config.trial_tokens)
        return lambda _, batch: map(asdict, observer.chains(batch, observer.write(batch)))

    append_batches(path, examples, config.batch_size, start, "exits")
    return read_chains(path)


@dataclass(frozen=True, slots=True)
class Written:
    """A chain as the base wrote it."""

    prompt_ids: list[int]
    """X."""
    opened: list[int]
    """X, and what stands before a chain."""
    reply: Reply
    thinking: Sequence[int]
    """The reply's tokens up to the end of thinking."""
    expected_tokens: float | None
    """Of the reply, by the probe."""


class Observer:
    """Chains of a base, and an answer at the end of each of their steps."""

    def __init__(
        self, base: FrozenBase, layout: LayoutIds, engine: Rollouts, task: Task, bundle: Bundle | None, max_chain_tokens: int,
        trial_tokens: int,
    ) -> None:  # fmt: skip
        """`bundle`: of this base, else it is not read."""
        self._base, self._layout, self._engine, self._task = base, layout, engine, task
        self._chain = Sampling(max_chain_tokens, confidence=True, logprobs=_TOP)
        self._trial = Sampling(trial_tokens, confidence=True, logprobs=_TOP)
        self._boundaries = Boundaries(base.tokenizer)
        self._end = layout.end_token(base.tokenizer)
        self._probe = self._net = None
        if bundle:
            self._probe, self._net = bundle.probe(), bundle.reasoning_net()
            self._num_latents = bundle.manifest.num_latent_tokens

    def write(self, examples: Sequence[Example]) -> list[Written]:
        prompts = [self._base.prompt_ids(example.messages) for example in examples]
        opened = [[*ids, *self._layout.explicit] for ids in prompts]
        replies = [reply for (reply,) in self._engine.from_tokens(opened, self._chain)]
        expected = self.scores(prompts).get("tokens", [None] * len(prompts))
        thinking = [self._thinking(reply.token_ids) for reply in replies]
        return [Written(*of) for of in zip(prompts, opened, replies, thinking, expected, strict=True)]

    def chains(self, examples: Sequence[Example], written: Sequence[Written]) -> Iterator[Chain]:
        ends = [self._boundaries.ends(one.thinking) for one in written]
        closed = [
            [*one.opened, *one.thinking[:at], *self._layout.after_latents]
            for one, of in zip(written, ends, strict=True)
            for at in of
        ]
        trials = iter([reply for (reply,) in self._engine.from_tokens(closed, self._trial)])
        for example, one, of in zip(examples, written, ends, strict=True):
            _, said = self._layout.split(one.reply.text)
            final = None if said is None else self._task.final_answer(said)
            attempts = tuple(
                self._attempt(example, one.reply, at, final, answered) for at, answered in zip(of, trials, strict=False)
            )
            yield Chain(
                example.level, said is not None and self._task.is_correct(said, example.answer), len(one.thinking),
                len(one.reply.token_ids), one.expected_tokens, attempts,
            )  # fmt: skip

    @torch.no_grad()
    def scores(self, prompts: Sequence[list[int]]) -> dict[str, list[float]]:
        """What the probe says of each question, by output; empty without one."""
        if self._probe is None:
            return {}
        prompt = self._base.read(prompts, self._probe.config.layers)
        latents = think(self._net, prompt, self._num_latents) if self._net and self._num_latents else None
        outputs = self._probe.scores(self._probe.features(prompt.all_states.float(), prompt.mask, latents))
        return {name: [round(value, 4) for value in values.tolist()] for name, values in outputs.items()}

    def _thinking(self, token_ids: Sequence[int]) -> Sequence[int]:
        return token_ids[: token_ids.index(self._end)] if self._end in token_ids else token_ids

    def _attempt(self, example: Example, chain: Reply, at: int, final: str | None, answered: Reply) -> Attempt:
        assert chain.logprobs is not None, "log-probabilities were asked for"
        # Where the blank after the step ends, the model says whether it goes on.
        rest = range(at, len(chain.token_ids))
        after = next((i for i in rest if not self._boundaries.is_blank(chain.token_ids[i])), None)
        closes = None if after is None else chain.logprobs[after].get(self._end)
        text = answered.text.strip()
        return Attempt(
            trial_of(answered, at), self._task.is_correct(text, example.answer),
            final is not None and self._task.final_answer(text) == final, math.exp(closes.logprob) if closes else 0.0,
        )  # fmt: skip


def trial_of(reply: Reply, at_tokens: int) -> Trial:
    """What a rule sees of a forced answer, with the log-probabilities of its likeliest tokens."""
    assert reply.logprobs, "log-probabilities were asked for"
    sampled = [next(iter(step.values())).logprob for step in reply.logprobs]
    entropies = [-sum(math.exp(one.logprob) * one.logprob for one in step.values()) for step in reply.logprobs]
    return Trial.of(at_tokens, reply.text, sampled, statistics.fmean(entropies))


def summarise(chains: Sequence[Chain]) -> dict[str, Any]:
    """Oracle, curve over λ, and how well each signal tells a trial that is final; trials are counted in tokens."""
    whole = statistics.fmean(chain.tokens for chain in chains)
    oracle = [
        (first.trial.at_tokens + first.trial.tokens, True) if (first := chain.first_right) else (chain.tokens, chain.right)
        for chain in chains
    ]
    attempts = [attempt for chain in chains for attempt in chain.attempts]
    return {
        "questions": len(chains),
        "steps": round(statistics.fmean(len(chain.attempts) for chain in chains), 2),
        "whole": {"right": round(statistics.fmean(chain.right for chain in chains), 4), "tokens": round(whole, 1)},
        "oracle": {
            "right": round(statistics.fmean(right for _, right in oracle), 4),
            "tokens": round(statistics.fmean(tokens for tokens, _ in oracle), 1),
        },
        "auroc": {name: _auroc(name, attempts) for name in _SIGNALS},
        "right by share of the chain": _by_share(chains),
        "slope": {
            name: _slope([chain for chain in chains if chain.right is right])
            for name, right in (("right", True), ("wrong", False))
        },
        "curve": [
            rule.model_dump(include={"confidence", "agreeing", "first", "closes"}) | played(rule, chains)
            for agreeing, (first, closes), confidence in itertools.product((1, 2, 3), _STARTS, _CONFIDENCES)
            for rule in [ExitRule(confidence=confidence, agreeing=agreeing, first=first, closes=closes)]
        ],
    }


def _auroc(name: str, attempts: Sequence[Attempt]) -> float | None:
    """Of a signal, for "this trial answers what the whole chain will"."""
    values = [attempt.closes if name == "closes" else getattr(attempt.trial, name) for attempt in attempts]
    scores = torch.tensor(values) * (-1 if name == "entropy" else 1)
    area = auroc(scores, torch.tensor([float(attempt.same) for attempt in attempts]))
    return known(area)


def _by_share(chains: Sequence[Chain]) -> dict[str, float]:
    """Share of right trials in each fifth of the chains."""
    fifths: dict[int, list[bool]] = {}
    for chain in chains:
        for attempt in chain.attempts:
            fifths.setdefault(min(4, 5 * attempt.trial.at_tokens // max(1, chain.thinking_tokens)), []).append(attempt.right)
    return {f"{fifth * 20}–{fifth * 20 + 20} %": round(statistics.fmean(fifths[fifth]), 4) for fifth in sorted(fifths)}


def _slope(chains: Sequence[Chain]) -> float | None:
    """Nats that a trial's entropy changes by along the whole of a chain, on average (CER)."""
    slopes = [
        statistics.linear_regression(
            [attempt.trial.at_tokens / chain.thinking_tokens for attempt in chain.attempts],
            [attempt.trial.entropy for attempt in chain.attempts],
        ).slope
        for chain in chains
        if len(chain.attempts) > 1
    ]
    return round(statistics.fmean(slopes), 4) if slopes else None


def markdown(figures: Mapping[str, Any]) -> str:
    whole = figures["whole"]["tokens"]

    def row(name: str, point: Mapping[str, Any]) -> tuple[object, ...]:
        trials = f"{point['trials']:.1f}" if "trials" in point else ""
        return name, f"{point['right']:.3f}", f"{point['tokens']:.1f}", f"{point['tokens'] / whole - 1:+.1%}", trials

    rows = [row("whole chains", figures["whole"]), row("oracle", figures["oracle"])]
    rows += [
        row(
            f"λ {point['confidence']:g}, {point['agreeing']} agree, from {point['first']:g} on, P(end) ≥ {point['closes']:g}",
            point,
        )
        for point in figures["curve"]
    ]
    signals = (("" if area is None else f"{area:.3f}") for area in figures["auroc"].values())
    shares = figures["right by share of the chain"]
    slope = figures["slope"]
    return "\n\n".join(
        [
            table(["chains end", "right", "tokens", "", "trials"], rows),
            table(["AUROC of a final trial", *figures["auroc"]], [["", *signals]]),
            table(["part of the chain", *shares], [["right", *(f"{share:.3f}" for share in shares.values())]]),
            f"Entropy along a chain: {slope['right']} nats where it is right, {slope['wrong']} where it is wrong.",
        ]
    )
