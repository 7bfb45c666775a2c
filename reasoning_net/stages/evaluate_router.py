"""Accuracy against cost: our policies beside the single modes, random mixes, first-token entropy, DiffAdapt and an oracle.

    latentserve router eval --bundle runs/bundle --url http://127.0.0.1:8000 --n 1000 --output runs/router

Every held-out question is asked in each mode, and routed, over HTTP. What a policy would have made of the answers is computed;
mode auto itself is asked as well, at the settings that the server would use, so that the computed curve can be checked.
"""

import asyncio
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
from pydantic import PositiveInt
from tqdm import tqdm

from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.errors import StageError
from reasoning_net.options import LOCAL_SERVER, Questions, Share, Url, commas
from reasoning_net.plots import plot_lines
from reasoning_net.stages.calibrate import prices
from reasoning_net.stages.evaluate import ask
from reasoning_net.tasks import Example, Task, TaskSpec
from router.calibration import Calibration
from router.figures import auroc, calibration_error
from router.outcomes import Outcome, Spent, apply
from router.policies.always import Always
from router.policies.diffadapt import DiffAdapt
from router.policies.entropy import Entropy
from router.policies.utility import Utility
from router.policy import Limits, Mode, Policy, Scores

Curve = list[tuple[float, float]]
"""(mean cost, accuracy)."""


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
    concurrency: PositiveInt = 32
    """Requests at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question's answers in every mode."""

    outcome: Outcome
    level: int
    prompt_tokens: int


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
    async with httpx.AsyncClient(base_url=config.url, timeout=600) as client:
        asker = _Asker(client, (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"], config, task)
        asked = await asker.all_modes(examples, limits.cheap)
        live = {"auto": await asker.auto(examples, {})}
        for share in config.shares:
            live[f"auto, explicit_share {share}"] = await asker.auto(examples, {"explicit_share": share})
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


@dataclass(frozen=True, slots=True)
class _Asker:
    client: httpx.AsyncClient
    model: str
    config: RouterEvalConfig
    task: Task

    async def all_modes(self, examples: Sequence[Example], cheap: Mode) -> list[Asked]:
        gate = asyncio.Semaphore(self.config.concurrency)
        modes = tuple(dict.fromkeys((Mode.DIRECT, cheap, Mode.EXPLICIT)))
        with tqdm(total=len(examples) * len(modes), desc="every mode", unit="answer") as progress:

            async def one(example: Example) -> Asked:
                answers = {}
                for mode in modes:
                    async with gate:
                        answers[mode] = await self._post(example, {"mode": mode, "logprobs": mode is cheap})
                    progress.update()
                async with gate:
                    body = {"model": self.model, "messages": example.messages}
                    routed = (await self.client.post("/v1/route", json=body)).raise_for_status().json()
                async with gate:
                    first = {"mode": Mode.DIRECT, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
                    glimpse, _ = await self._post(example, first)
                logprobs = [t["logprob"] for t in _tokens(glimpse)[0]["top_logprobs"]]
                entropy = -sum(math.exp(value) * value for value in logprobs)
                sure = min(token["logprob"] for token in _tokens(answers[cheap][0]))
                outcome = Outcome(
                    Scores(**routed["route"]["scores"], entropy=entropy),
                    math.exp(sure),
                    {mode: float(self._is_correct(content, example)) for mode, (content, _) in answers.items()},
                    {mode: float(content["usage"]["completion_tokens"]) for mode, (content, _) in answers.items()},
                    {mode: seconds for mode, (_, seconds) in answers.items()},
                )
                return Asked(outcome, example.level, routed["prompt_tokens"])

            return await asyncio.gather(*map(one, examples))

    async def auto(self, examples: Sequence[Example], router: dict[str, float]) -> Live:
        gate = asyncio.Semaphore(self.config.concurrency)
        with tqdm(total=len(examples), desc=f"auto {router or ''}", unit="answer") as progress:

            async def one(example: Example) -> tuple[dict[str, Any], float]:
                async with gate:
                    answer = await self._post(example, {"mode": "auto", "router": router})
                progress.update()
                return answer

            answers = await asyncio.gather(*map(one, examples))
        routes = [content["route"] for content, _ in answers]
        spent = [content["usage"]["completion_tokens"] + content["route"]["discarded_tokens"] for content, _ in answers]
        return Live(
            statistics.fmean(self._is_correct(c, e) for (c, _), e in zip(answers, examples, strict=True)),
            statistics.fmean(spent),
            statistics.fmean(route["mode"] == Mode.EXPLICIT for route in routes),
            statistics.fmean(route["escalated"] for route in routes),
            statistics.median(seconds for _, seconds in answers),
        )

    async def _post(self, example: Example, options: dict[str, Any]) -> tuple[dict[str, Any], float]:
        started = asyncio.get_running_loop().time()
        response = await ask(self.client, {"model": self.model, "messages": example.messages, "temperature": 0} | options)
        if response.status_code != 200:
            raise StageError(f"{self.config.url} refused a question: {response.text}")
        return response.json(), asyncio.get_running_loop().time() - started

    def _is_correct(self, content: dict[str, Any], example: Example) -> bool:
        return self.task.is_correct(content["choices"][0]["message"]["content"] or "", example.answer)


def _tokens(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The log-probabilities of a completion, token by token."""
    return list(content["choices"][0]["logprobs"]["content"])


def forecasts(asked: Sequence[Asked], calibration: Calibration, cheap: Mode) -> dict[str, dict[str, float]]:
    """How well each signal tells right cheap answers from wrong ones; calibration error of those that are probabilities."""
    outcomes, levels = [one.outcome for one in asked], torch.tensor([one.level for one in asked])
    right = torch.tensor([o.correct[cheap] for o in outcomes])
    signals = {
        "probe": [o.scores.correct(cheap) or 0.0 for o in outcomes],
        "prompt length": [-float(one.prompt_tokens) for one in asked],
        "number of steps": [-float(one.level) for one in asked],
        "first-token entropy": [-(o.scores.entropy or 0.0) for o in outcomes],
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


def play(outcomes: Sequence[Outcome], calibration: Calibration, limits: Limits) -> dict[str, list[list[Spent]]]:
    """Per policy, for each setting of its dial (one, where it has none), what it makes of every outcome."""

    def under(policies: Iterable[Policy], limits: Limits = limits) -> list[list[Spent]]:
        return [[apply(policy, o, limits) for o in outcomes] for policy in policies]

    checked = prices(calibration, outcomes, limits)
    unchecked = prices(calibration.model_copy(update={"confidence": None}), outcomes, limits)
    entropies = sorted(o.scores.entropy for o in outcomes if o.scores.entropy is not None)
    played = {
        "utility": under(Utility(calibration, price) for price in checked),
        "utility, no check": under(
            (Utility(calibration, price) for price in unchecked), Limits(limits.can_think_latent, can_escalate=False)
        ),
        "DiffAdapt": under([DiffAdapt(calibration.strategies, calibration.longest_tokens)]),
    }
    if entropies:
        thresholds = [entropies[round(at * (len(entropies) - 1) / 20)] for at in range(21)]
        played["first-token entropy"] = under(map(Entropy, thresholds))
    for mode in dict.fromkeys((Mode.DIRECT, limits.cheap, Mode.EXPLICIT)):
        played[f"always {mode}"] = under([Always(mode)])
    return played


def policy_curves(
    played: dict[str, list[list[Spent]]], outcomes: Sequence[Outcome], limits: Limits, cost: str
) -> dict[str, Curve]:
    """Per policy the points (mean cost, accuracy) that its dial can reach; one point for a policy without a dial."""

    def point(spent: Sequence[Spent]) -> tuple[float, float]:
        return (statistics.fmean(getattr(one, cost) for one in spent), statistics.fmean(one.correct for one in spent))

    curves = {name: sorted(map(point, settings)) for name, settings in played.items()}
    curves["oracle"] = sorted(oracle(outcomes, limits, cost))
    curves["random mix"] = sorted([*curves[f"always {limits.cheap}"], *curves["always explicit"]])
    return curves


def oracle(outcomes: Sequence[Outcome], limits: Limits, cost: str) -> Curve:
    """Who knows every answer: explicit thinking only where it mends a wrong one, cheapest first."""
    cheap = limits.cheap

    def price(outcome: Outcome, mode: Mode) -> float:
        return float(getattr(outcome, cost)[mode])

    total, right = sum(price(o, cheap) for o in outcomes), sum(o.correct[cheap] for o in outcomes)
    curve = [(total / len(outcomes), right / len(outcomes))]
    mended = [o for o in outcomes if o.correct[Mode.EXPLICIT] > o.correct[cheap]]
    for outcome in sorted(mended, key=lambda o: price(o, Mode.EXPLICIT)):
        total += price(outcome, Mode.EXPLICIT) - price(outcome, cheap)
        right += outcome.correct[Mode.EXPLICIT] - outcome.correct[cheap]
        curve.append((total / len(outcomes), right / len(outcomes)))
    return curve


def areas(curve: Curve, outcomes: Sequence[Outcome], limits: Limits, cost: str) -> dict[str, float]:
    """AUC: mean accuracy over the costs between always cheap (0) and always explicit (1). APGR (RouteLLM): the same of the
    recovered part of the gap in accuracy, where there is one; a random mix has 0.5. Empty for a single point."""
    if len(curve) < 2:
        return {}
    ends = [
        (statistics.fmean(getattr(o, cost)[mode] for o in outcomes), statistics.fmean(o.correct[mode] for o in outcomes))
        for mode in (limits.cheap, Mode.EXPLICIT)
    ]
    (low, weak), (high, strong) = ends
    auc = statistics.fmean(best_at(curve, low + (high - low) * step / 200) for step in range(201))
    figures = {"AUC": round(auc, 4)}
    return figures | ({"APGR": round((auc - weak) / (strong - weak), 4)} if strong > weak else {})


def best_at(curve: Curve, cost: float) -> float:
    """The accuracy at that mean cost: mixes of two neighbouring settings lie on the line between them."""
    points = sorted(curve)
    if cost <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= cost <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (cost - x0) / (x1 - x0)
    return points[-1][1]


def _live_table(live: dict[str, Live]) -> str:
    lines = ["| over HTTP | accuracy | generated tokens | answered explicitly | escalated | p50 seconds |", "|---" * 6 + "|"]
    lines += [
        f"| {name} | {one.accuracy:.3f} | {one.tokens:.1f} | {one.explicit_share:.1%} | {one.escalated_share:.1%} "
        f"| {one.p50_seconds:.3f} |"
        for name, one in live.items()
    ]
    return "\n".join(lines)


def _signal_table(signals: dict[str, dict[str, float]]) -> str:
    names = ("AUROC", "least AUROC within a level", "calibration error")
    lines = [f"| signal of a right answer | {' | '.join(names)} |", "|---" * 4 + "|"]
    for signal, figures in signals.items():
        cells = [f"{figures[name]:.3f}" if name in figures else "" for name in names]
        lines.append(f"| {signal} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _area_table(curves: dict[str, Curve], figures: dict[str, dict[str, float]], cost: str) -> str:
    """The areas of what has a dial; of what has none, its one point."""
    lines = [f"| policy, cost in {cost} | AUC | APGR | cost | accuracy |", "|---" * 5 + "|"]
    for name, one in figures.items():
        if one:
            lines.append(f"| {name} | {one['AUC']:.3f} | {one.get('APGR', math.nan):.3f} | | |")
        else:
            ((spent, accuracy),) = curves[name]
            lines.append(f"| {name} | | | {spent:.4g} | {accuracy:.3f} |")
    return "\n".join(lines)
