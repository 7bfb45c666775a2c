"""Accuracy against cost: our policies beside the single modes, random mixes, first-token entropy, DiffAdapt and an oracle.

    latentserve router eval --bundle runs/bundle --url http://127.0.0.1:8000 --n 1000 --output runs/router

Every held-out question is asked in each mode, and routed, over HTTP. What a policy would have made of the answers is computed;
mode auto itself is asked as well, at the settings that the server would use, so that the computed curve can be checked.
"""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PositiveInt

from reasoning_net.bundle import Bundle
from reasoning_net.client import Server, connected, gather
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.errors import StageError
from reasoning_net.options import LOCAL_SERVER, Questions, Share, Url, commas
from reasoning_net.plots import plot_lines
from reasoning_net.tables import table
from reasoning_net.tasks import Example, Task, TaskSpec
from router.calibration import Calibration
from router.curves import Curve, areas, play, policy_curves
from router.figures import auroc, calibration_error
from router.outcomes import Outcome
from router.policy import Limits, Mode, Scores

_TEMPERATURE = 0.6  # of sampled answers, as the router's calibration has them


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterEvalConfig:
    output: Path
    """Directory for the tables, figures and plots."""
    bundle: Path = DEMO_BUNDLE
    """The bundle that the server serves."""
    url: Url = LOCAL_SERVER
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 1000
    """Held-out questions."""
    seed: int = 31
    """Seed of the questions."""
    shares: Annotated[tuple[Share, ...], commas(float)] = (0.1, 0.2, 0.3, 0.5)
    """Explicit shares that mode auto is asked for, beside its default."""
    samples: PositiveInt = 4
    """Sampled cheap answers to a question, whose agreement with the greedy one is a signal, too."""
    concurrency: PositiveInt = 32
    """Requests at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question's answers in every mode."""

    outcome: Outcome
    level: int
    prompt_tokens: int
    relevant: float = 0.0
    """Mean log-probability of the cheap answer's relevant tokens (tokenSAR)."""
    agreement: float = 0.0
    """Share of sampled cheap answers that say the same (sentence SAR)."""


@dataclass(frozen=True, slots=True)
class Live:
    """What mode auto did, asked over HTTP."""

    accuracy: float
    tokens: float
    explicit_share: float
    escalated_share: float
    p50_seconds: float


async def main(config: RouterEvalConfig) -> str:
    """Ask, compute, write `router.json`, `router.md` and the plots; returns the tables."""
    manifest = Bundle.load(config.bundle).manifest
    if manifest.calibration is None:
        raise StageError(f"{config.bundle} has no calibrated probe. Fit one with `latentserve router fit`.")
    task = config.task.load()
    examples = list(itertools.islice(task.examples(config.seed, "test"), config.n))
    limits = Limits(can_think_latent=manifest.reasoning_net is not None)
    async with connected(config.url, config.concurrency) as server:
        asked = await gather(
            (ask_all_modes(server, task, example, limits.cheap, manifest.calibration, config.samples) for example in examples),
            "every mode",
        )
        live = {"auto": await ask_auto(server, task, examples, {})}
        for share in config.shares:
            live[f"auto, explicit_share {share}"] = await ask_auto(server, task, examples, {"explicit_share": share})
    outcomes = [one.outcome for one in asked]
    report: dict[str, Any] = {"questions": len(examples), "seed": config.seed}
    signals = forecasts(asked, manifest.calibration, limits.cheap)
    report["signals"] = signals
    tables = [_live_table(live), _signal_table(signals)]
    report["live"] = {name: {k: round(getattr(one, k), 4) for k in Live.__slots__} for name, one in live.items()}
    played = play(outcomes, manifest.calibration, limits)
    for cost in ("tokens", "seconds"):
        curves = policy_curves(played, outcomes, limits, cost)
        figures = {name: areas(curve, outcomes, limits, cost) for name, curve in curves.items()}
        report[cost] = {"curves": curves, "areas": figures}
        tables.append(_area_table(curves, figures, cost))
        with_a_dial = {name: [(x, y, 0.0) for x, y in curve] for name, curve in curves.items() if len(curve) > 1}
        unit = "generated tokens" if cost == "tokens" else "seconds"
        plot_lines(
            with_a_dial, config.output / f"router_{cost}.png",
            title="Accuracy and its price", x=f"{unit} a question", y="accuracy",
        )  # fmt: skip
    text = "\n\n".join(tables)
    (config.output / "router.json").write_text(json.dumps(report, indent=1))
    (config.output / "router.md").write_text(text + "\n")
    return text


async def ask_all_modes(
    server: Server, task: Task, example: Example, cheap: Mode, calibration: Calibration, samples: int
) -> Asked:
    """Each mode's answer, what the router thinks of the question, and what else may tell whether the cheap answer is right.

    The calibration's thinking stands as explicit: it is what auto answers hard questions with.
    """
    asked = {Mode.DIRECT: Mode.DIRECT, cheap: cheap, Mode.EXPLICIT: calibration.thinking}
    answers = {
        arm: await server.complete(example.messages, mode=mode, temperature=0, logprobs=mode is cheap)
        for arm, mode in asked.items()
    }
    routed = await server.route(example.messages)
    first = {"mode": Mode.DIRECT, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    glimpse = await server.complete(example.messages, **first)
    sampled = await server.complete(example.messages, mode=cheap, temperature=_TEMPERATURE, n=samples, seed=0)
    outcome = Outcome(
        Scores(**routed["route"]["scores"], entropy=-sum(math.exp(p) * p for p in glimpse.first_logprobs)),
        answers[cheap].least_certain,
        {mode: float(task.is_correct(answer.replies[0], example.answer)) for mode, answer in answers.items()},
        {mode: float(answer.tokens) for mode, answer in answers.items()},
        {mode: answer.seconds for mode, answer in answers.items()},
    )
    same = (task.final_answer(reply) == task.final_answer(answers[cheap].replies[0]) for reply in sampled.replies)
    relevant = relevant_logprob(answers[cheap].token_logprobs, task)
    return Asked(outcome, example.level, routed["prompt_tokens"], relevant, statistics.fmean(same))


def relevant_logprob(tokens: Sequence[tuple[str, float]], task: Task) -> float:
    """tokenSAR (2307.01379), negated: the mean log-probability, weighted by what each token says.

    The paper's weight is how little a text without the token is like the whole, to a similarity model; ours is 1 where the
    final answer becomes another one, else 0: what the answers' grading calls the same.
    """
    texts = [text for text, _ in tokens]
    whole = task.final_answer("".join(texts))
    relevant = [
        logprob
        for at, (_, logprob) in enumerate(tokens)
        if task.final_answer("".join([*texts[:at], *texts[at + 1 :]])) != whole
    ]
    return statistics.fmean(relevant or [logprob for _, logprob in tokens])


async def ask_auto(server: Server, task: Task, examples: Sequence[Example], router: dict[str, float]) -> Live:
    asked = (server.complete(example.messages, mode="auto", temperature=0, router=router) for example in examples)
    answers = await gather(asked, f"auto {router or ''}")
    return Live(
        statistics.fmean(task.is_correct(a.replies[0], e.answer) for a, e in zip(answers, examples, strict=True)),
        statistics.fmean(answer.tokens for answer in answers),
        statistics.fmean(Mode(answer.route["mode"]).thinks_in_text for answer in answers),
        statistics.fmean(answer.route["escalated"] for answer in answers),
        statistics.median(answer.seconds for answer in answers),
    )


def forecasts(asked: Sequence[Asked], calibration: Calibration, cheap: Mode) -> dict[str, dict[str, float]]:
    """How well each signal tells right cheap answers from wrong ones; calibration error of those that are probabilities."""
    outcomes, levels = [one.outcome for one in asked], torch.tensor([one.level for one in asked])
    right = torch.tensor([o.correct[cheap] for o in outcomes])
    signals = {
        "probe": [o.scores.correct(cheap) or 0.0 for o in outcomes],
        "prompt length": [-float(one.prompt_tokens) for one in asked],
        "number of steps": [-float(one.level) for one in asked],
        "first-token entropy": [-(o.scores.entropy or 0.0) for o in outcomes],
        "least certain token": [o.confidence or 0.0 for o in outcomes],
        "tokenSAR": [one.relevant for one in asked],
        "sentence SAR (agreement of samples)": [one.agreement for one in asked],
    }
    if check := calibration.confidence:
        signals["probe and answer"] = [check.posterior(o.scores.correct(cheap) or 0.0, o.confidence or 0.0) for o in outcomes]
    figures = {}
    for name, values in signals.items():
        scores = torch.tensor(values)
        within = [auroc(scores[levels == level], right[levels == level]) for level in levels.unique()]
        figures[name] = {
            "AUROC": auroc(scores, right),
            "least AUROC within a level": min((value for value in within if not math.isnan(value)), default=math.nan),
        }
        if name.startswith("probe"):
            figures[name]["calibration error"] = calibration_error(scores, right)
    return {name: {key: round(value, 4) for key, value in one.items()} for name, one in figures.items()}


def _live_table(live: dict[str, Live]) -> str:
    rows = (
        (name, f"{one.accuracy:.3f}", f"{one.tokens:.1f}", f"{one.explicit_share:.1%}", f"{one.escalated_share:.1%}",
         f"{one.p50_seconds:.3f}")
        for name, one in live.items()
    )  # fmt: skip
    return table(("over HTTP", "accuracy", "generated tokens", "answered explicitly", "escalated", "p50 seconds"), rows)


def _signal_table(signals: dict[str, dict[str, float]]) -> str:
    names = ("AUROC", "least AUROC within a level", "calibration error")
    cells = ((signal, *(f"{of[name]:.3f}" if name in of else "" for name in names)) for signal, of in signals.items())
    return table(("signal of a right answer", *names), cells)


def _area_table(curves: dict[str, Curve], figures: dict[str, dict[str, float]], cost: str) -> str:
    """The areas of what has a dial; of what has none, its one point."""

    def cells(name: str) -> tuple[str, ...]:
        if of := figures[name]:
            return name, f"{of['AUC']:.3f}", f"{of.get('APGR', math.nan):.3f}", "", ""
        ((spent, accuracy),) = curves[name]
        return name, "", "", f"{spent:.4g}", f"{accuracy:.3f}"

    return table((f"policy, cost in {cost}", "AUC", "APGR", "cost", "accuracy"), map(cells, figures))
