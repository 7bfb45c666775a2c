"""The figures of `analyse complexity`: token complexities, the limit that follows from them, and how near to it one comes.

Twice: of answers that think in text, if at all, and of all, latent ones included. A latent answer is short and may be right
where a longer chain that was cut is wrong, which no threshold describes: the classifier's accuracy tells how often that is.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reasoning_net.plots import plot_lines
from reasoning_net.tables import table
from router.calibration import Calibration
from router.complexity import Pair, cheapest, cheapest_right, limit, realised, token_complexity
from router.curves import Curve, play, policy_curves
from router.exits import Chain, ExitRule, played
from router.figures import kendall, known
from router.outcomes import Outcome, apply
from router.policies.utility import Utility
from router.policy import Limits, Mode
from router.probe_config import scores_of

TEXT, ALL, CHEAPEST = "in text", "with latents", "cheapest right answer"
_RULES = tuple(itertools.product((1, 2, 3), (0.5, 0.9, 0.95, 0.99, 0.999)))
Method = tuple[float, float]
"""(tokens a question, share right)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, answered in every way."""

    level: int
    pairs: tuple[Pair, ...]
    chain: Chain
    scores: dict[str, float]
    """The probe's outputs; empty without one."""
    confidence: float | None
    """Probability of the least certain token of the answer in the cheap mode."""

    def pair(self, way: str) -> Pair:
        return next(pair for pair in self.pairs if pair.way == way)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a router would go by."""

    calibration: Calibration | None
    limits: Limits
    cheap: str
    """The way that stands for the cheap mode."""


def summarise(asked: Sequence[Asked], setting: Setting) -> dict[str, Any]:
    families: dict[str, Callable[[Pair], bool]] = {TEXT: lambda pair: pair.kind != "latent"}
    if setting.limits.can_think_latent:
        families[ALL] = lambda _: True
    pairs = {name: [[pair for pair in one.pairs if of(pair)] for one in asked] for name, of in families.items()}
    needed = {name: [token_complexity(of) for of in each] for name, each in pairs.items()}
    limits = needed | {CHEAPEST: [cheapest_right(one.pairs) for one in asked]}
    whole = statistics.fmean(one.chain.tokens for one in asked)
    curves, methods = _curves(asked, setting), _methods(asked, setting)
    if setting.calibration:
        methods |= {"DiffAdapt": curves.pop("DiffAdapt")[0], "auto": _auto(asked, setting, setting.calibration)}
    return {
        "questions": len(asked),
        "classifier": {name: _classifier(pairs[name], needed[name]) for name in families},
        "levels": {name: _levels(asked, needed[name]) for name in families},
        "slack": {name: _slack(asked, of) for name, of in limits.items()},
        "kendall": {name: _orders(asked, needed[name]) for name in families},
        "limit": {name: limit(of) for name, of in limits.items()},
        "methods": {
            name: {
                "tokens": round(tokens, 1),
                "right": round(right, 4),
                "limit": {of: round(cheapest(taus, right), 1) for of, taus in limits.items()},
                "realised": {of: _rounded(realised(tokens, right, whole, taus)) for of, taus in limits.items()},
            }
            for name, (tokens, right) in methods.items()
        },
        "curves": curves,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else known(value)


def _classifier(pairs: Sequence[Sequence[Pair]], needed: Sequence[float]) -> dict[str, dict[str, float]]:
    """Accuracy of "right if and only if as many tokens as needed", over all answers and by kind; what always saying the more
    frequent of the two would have; and the share that is right, as it is and as predicted."""
    judged = [(pair, pair.tokens >= of) for each, of in zip(pairs, needed, strict=True) for pair in each]
    kinds = dict.fromkeys(pair.kind for pair, _ in judged)
    groups = {"all": judged} | {kind: [(pair, says) for pair, says in judged if pair.kind == kind] for kind in kinds}
    return {
        kind: {
            "answers": len(of),
            "right": round(statistics.fmean(pair.right for pair, _ in of), 4),
            "predicted": round(statistics.fmean(says for _, says in of), 4),
            "accuracy": round(statistics.fmean(pair.right is says for pair, says in of), 4),
            "constant": round(max(share := statistics.fmean(pair.right for pair, _ in of), 1 - share), 4),
        }
        for kind, of in groups.items()
    }


def _levels(asked: Sequence[Asked], needed: Sequence[float]) -> dict[int, dict[str, float | None]]:
    """By number of steps: quartiles of what is needed, and the whole chain beside it."""
    figures: dict[int, dict[str, float | None]] = {}
    for level in sorted({one.level for one in asked}):
        of = [(tau, one.chain.tokens) for tau, one in zip(needed, asked, strict=True) if one.level == level]
        finite = sorted(tau for tau, _ in of if math.isfinite(tau))
        quartiles = statistics.quantiles(finite, n=4, method="inclusive") if len(finite) > 1 else [*finite, *finite, *finite]
        figures[level] = {
            "questions": len(of),
            "first quartile": quartiles[0] if finite else None,
            "median": quartiles[1] if finite else None,
            "third quartile": quartiles[2] if finite else None,
            "whole": round(statistics.fmean(tokens for _, tokens in of), 1),
            "never right": round(1 - len(finite) / len(of), 4),
        }
    return figures


def _slack(asked: Sequence[Asked], needed: Sequence[float]) -> float | None:
    """Share of the tokens of whole chains beyond what is needed, where an answer can be right."""
    finite = [(tau, one.chain.tokens) for tau, one in zip(needed, asked, strict=True) if math.isfinite(tau)]
    return round(1 - sum(tau for tau, _ in finite) / sum(tokens for _, tokens in finite), 4) if finite else None


def _orders(asked: Sequence[Asked], needed: Sequence[float]) -> dict[str, float | None]:
    """Kendall's τ with what is needed, where that is finite."""
    kept = [(tau, one) for tau, one in zip(needed, asked, strict=True) if math.isfinite(tau)]
    values: dict[str, list[float]] = {
        "tokens of explicit answers": [one.chain.tokens for _, one in kept],
        "the probe's tokens": [one.scores["tokens"] for _, one in kept if "tokens" in one.scores],
        "steps": [one.level for _, one in kept],
    }
    taus = torch.tensor([tau for tau, _ in kept])
    return {name: _rounded(kendall(torch.tensor(of), taus)) for name, of in values.items() if of}


def _methods(asked: Sequence[Asked], setting: Setting) -> dict[str, Method]:
    """What is measured beside the limit: every way that all questions have, budgets, the exit rule, and policies."""
    fixed = dict.fromkeys(pair.way for one in asked for pair in one.pairs if pair.kind in ("direct", "latent", "dropped"))
    budgets = sorted({pair.way for one in asked for pair in one.pairs if pair.kind == "budget"}, key=lambda way: int(way[7:]))
    methods = {way: _mean([one.pair(way) for one in asked]) for way in fixed}
    methods |= {way: _mean([_up_to(one, way) for one in asked]) for way in budgets}
    rule = (setting.calibration and setting.calibration.exit) or ExitRule()
    of = played(rule, [one.chain for one in asked])
    methods["exit, two that agree" if rule == ExitRule() else "exit, calibrated"] = of["tokens"], of["right"]
    methods["explicit"] = _mean([one.pair("explicit") for one in asked])
    return methods


def _mean(pairs: Iterable[Pair]) -> Method:
    pairs = list(pairs)
    return statistics.fmean(pair.tokens for pair in pairs), statistics.fmean(pair.right for pair in pairs)


def _up_to(one: Asked, budget: str) -> Pair:
    """The answer under a budget; a chain that is shorter is not cut."""
    return next((pair for pair in one.pairs if pair.way == budget), one.pair("explicit"))


def _outcomes(asked: Sequence[Asked], setting: Setting) -> list[Outcome]:
    columns = {name: [one.scores[name] for one in asked] for name in asked[0].scores}
    outcomes = []
    for one, scores in zip(asked, scores_of(columns), strict=True):
        ways = {Mode.DIRECT: one.pair("direct"), setting.limits.cheap: one.pair(setting.cheap)}
        ways[Mode.EXPLICIT] = one.pair("explicit")
        right = {mode: float(pair.right) for mode, pair in ways.items()}
        outcomes.append(Outcome(scores, one.confidence, right, {mode: pair.tokens for mode, pair in ways.items()}))
    return outcomes


def _auto(asked: Sequence[Asked], setting: Setting, calibration: Calibration) -> Method:
    """As shipped."""
    policy = Utility(calibration, calibration.point.price)
    spent = [apply(policy, outcome, setting.limits) for outcome in _outcomes(asked, setting)]
    return statistics.fmean(one.tokens for one in spent), statistics.fmean(one.correct for one in spent)


def _curves(asked: Sequence[Asked], setting: Setting) -> dict[str, Curve]:
    """Who has a dial: exit rules over λ, and, with a calibrated probe, `auto` over its price; DiffAdapt is one point."""
    chains = [one.chain for one in asked]
    ends = [played(ExitRule(agreeing=agreeing, confidence=confidence), chains) for agreeing, confidence in _RULES]
    curves = {
        "random mix": sorted(
            [_mean([one.pair(setting.cheap) for one in asked]), _mean([one.pair("explicit") for one in asked])]
        ),
        "exit": _best([(of["tokens"], of["right"]) for of in ends]),
    }
    if setting.calibration:
        outcomes = _outcomes(asked, setting)
        of = policy_curves(play(outcomes, setting.calibration, setting.limits), outcomes, setting.limits, "tokens")
        curves |= {"auto": of["utility"], "DiffAdapt": of["DiffAdapt"]}
    return curves


def _best(points: Curve) -> Curve:
    """Those that no cheaper one is as good as."""
    kept: Curve = []
    for tokens, right in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or right > kept[-1][1]:
            kept.append((tokens, right))
    return kept


def markdown(figures: Mapping[str, Any]) -> str:
    parts = [f"{figures['questions']} questions."]
    families, limits = list(figures["classifier"]), list(figures["limit"])
    rows = [
        (f"{name}: {kind}", of["answers"], *(f"{of[key]:.3f}" for key in ("right", "predicted", "accuracy", "constant")))
        for name, kinds in figures["classifier"].items()
        for kind, of in kinds.items()
    ]
    parts.append(table(["answers", "number", "right", "right, predicted", "accuracy of τ̂", "of a constant"], rows))
    for name in families:
        levels = (
            (level, of["questions"], _number(of["first quartile"]), _number(of["median"]), _number(of["third quartile"]),
             _number(of["whole"]), f"{of['never right']:.3f}")
            for level, of in figures["levels"][name].items()
        )  # fmt: skip
        header = [f"steps ({name})", "questions", "τ̂, first quartile", "median", "third quartile", "whole chain", "never right"]
        parts.append(table(header, levels))
    rows = [
        (
            name,
            f"{of['tokens']:.1f}",
            f"{of['right']:.3f}",
            *(f"{of['limit'][by]:.1f}, {_share(of['realised'][by])}" for by in limits),
        )
        for name, of in figures["methods"].items()
    ]
    header = ["", "tokens", "right", *(f"at the limit ({by}), part of the saving" for by in limits)]
    parts.append(table(header, rows))
    orders = list(figures["kendall"][TEXT])
    rows = [(f"τ̂ {name}", *(_number(of[key], 3) for key in orders)) for name, of in figures["kendall"].items()]
    parts.append(table(["Kendall's τ", *orders], rows))
    slack = ", ".join(f"{_share(of)} {name}" for name, of in figures["slack"].items())
    parts.append(f"Of whole chains, beyond what an answer needs: {slack}.")
    return "\n\n".join(parts)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def draw(figures: Mapping[str, Any], output: Path) -> None:
    lines = {f"limit {name}": curve for name, curve in figures["limit"].items()} | figures["curves"]
    lines["budget"] = [(of["tokens"], of["right"]) for name, of in figures["methods"].items() if name.startswith("budget")]
    plot_lines(
        {name: [(x, y, 0.0) for x, y in curve] for name, curve in lines.items()}, output / "complexity.png",
        title="What tokens could buy, and what they buy", x="tokens a question", y="right",
    )  # fmt: skip
    levels = {
        f"needed {name}": [(level, of["median"], 0.0) for level, of in of_levels.items() if of["median"] is not None]
        for name, of_levels in figures["levels"].items()
    }
    levels["whole chain"] = [(level, of["whole"], 0.0) for level, of in figures["levels"][TEXT].items()]
    plot_lines(levels, output / "levels.png", title="Tokens that an answer needs", x="steps", y="tokens, median")
