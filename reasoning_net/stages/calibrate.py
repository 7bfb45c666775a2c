"""Find the price that gives what an operator asked for, on the questions that `router fit` held out.

    latentserve router calibrate --bundle runs/bundle --explicit-share 0.3
    latentserve router calibrate --bundle runs/bundle --exit-loss 0.005 --chains runs/exits/chains.jsonl

The second one finds the rule by which chains of mode auto end early, on one half of the chains that `analyse exits` has
observed; what it gives is told of the other half. No engine is needed, except to measure seconds: those belong to the server
that will run.
"""

import asyncio
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PositiveInt

from reasoning_net.analysis.exits import read_chains
from reasoning_net.bundle import Bundle
from reasoning_net.client import connected, gather
from reasoning_net.errors import StageError
from reasoning_net.options import SERVER, Flat, Questions, Share
from reasoning_net.tasks import TaskSpec
from router.calibration import Calibration, Confidence, Point, Target, choose
from router.curves import prices
from router.exits import calibrated, played
from router.outcomes import Outcome, curve, from_tensors
from router.policies.utility import Utility
from router.policy import Limits, Mode

_CERTAIN_OF = 200  # observed answers, at least, of which one in 1,000 may be wrong


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    bundle: Path
    """With a probe; gets the setting."""
    target: Annotated[Target | None, Flat] = None
    exit_loss: Share | None = None
    """By how much chains that end early may be right more seldom than whole ones."""
    chains: Path | None = None
    """chains.jsonl of `analyse exits`, for that."""
    url: Annotated[str | None, SERVER] = None
    """A running server of this base, where seconds are measured."""
    n: PositiveInt = 48
    """Questions in each mode for that."""
    concurrency: PositiveInt = 8
    """Requests at once while seconds are measured."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)


def main(config: CalibrateConfig) -> dict[str, Any]:
    """Put the target, or a rule of exits, in force in the bundle. Raises `RouterError` for a target that cannot be met."""
    if config.target is None and config.exit_loss is None:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in Target.model_fields)
        raise StageError(f"give one of {options}, or --exit-loss.")
    bundle = Bundle.load(config.bundle)
    bundle.check_writable()
    manifest, columns = bundle.manifest, bundle.calibration_outcomes()
    if manifest.calibration is None or columns is None:
        raise StageError(f"{config.bundle} has no calibrated probe. Fit one with `latentserve router fit`.")
    if config.exit_loss is not None or config.target is None:
        return _calibrate_exits(bundle, manifest.calibration, config)
    outcomes, cheap = from_tensors(columns), Mode.LATENT if manifest.reasoning_net else Mode.DIRECT
    if config.url:
        models = asyncio.run(measure_seconds(config.url, config.task, cheap, config.n, config.concurrency))
        outcomes = [replace(o, seconds={mode: a + b * o.tokens[mode] for mode, (a, b) in models.items()}) for o in outcomes]
    elif config.target.p95_seconds is not None:
        raise StageError("Seconds belong to a machine. Start the server that will run, and name it with --url.")
    before = manifest.calibration
    calibration = calibrate(outcomes, before.confidence, config.target, cheap, before.thinking)
    calibration = calibration.model_copy(
        update={"strategies": before.strategies, "latent_loss": before.latent_loss, "exit": before.exit}
    )
    bundle.update(calibration=calibration)
    return {"target": config.target.model_dump(exclude_none=True)} | calibration.point.model_dump(exclude_none=True)


def _calibrate_exits(bundle: Bundle, calibration: Calibration, config: CalibrateConfig) -> dict[str, Any]:
    if config.target is not None or config.chains is None:
        raise StageError("--exit-loss goes with --chains (chains.jsonl of `latentserve analyse exits`), and without a target.")
    chains = read_chains(config.chains)
    rule, held = calibrated(chains[::2], config.exit_loss or 0.0), chains[1::2]
    if not held:
        raise StageError(f"{config.chains} has too few chains.")
    bundle.update(calibration=calibration.model_copy(update={"exit": rule}))
    whole = {
        "right": round(statistics.fmean(chain.right for chain in held), 4),
        "tokens": round(statistics.fmean(chain.tokens for chain in held), 1),
    }
    return {"exit": rule.model_dump(exclude_none=True) if rule else None, "whole chains": whole} | (
        {"ended early": played(rule, held)} if rule else {}
    )


def calibrate(
    outcomes: Sequence[Outcome], confidence: Confidence | None, target: Target, cheap: Mode, thinking: Mode = Mode.EXPLICIT
) -> Calibration:
    """The whole curve, and the point on it that meets the target, on outcomes of which all answers are known."""
    explicit = torch.tensor([o.tokens[Mode.EXPLICIT] for o in outcomes])
    expected = torch.tensor([o.scores.tokens or math.nan for o in outcomes])
    scores = cheap_scores(outcomes, cheap)
    edges = scores.quantile(torch.linspace(0.1, 0.9, 9, dtype=torch.double)).unique()
    shares = torch.bucketize(scores, edges, right=True).bincount(minlength=len(edges) + 1) / len(scores)
    nothing = Point(price=0, accuracy=0, explicit_share=0, mean_tokens=0)
    calibration = Calibration(
        target=target,
        point=nothing,
        points=(),
        answer_tokens={
            mode: round(statistics.fmean(o.tokens[mode] for o in outcomes), 2) for mode in sorted({Mode.DIRECT, cheap})
        },
        budget_ratio=round(float((explicit / expected).nanquantile(0.999)), 3),
        longest_tokens=round(float(explicit.quantile(0.99)), 1),
        confidence=confidence,
        certain_from=certain_from(outcomes, cheap),
        thinking=thinking,
        score_edges=tuple(edges.tolist()),
        score_shares=tuple(round(share, 5) for share in shares.tolist()),
    )
    limits = Limits(can_think_latent=cheap is Mode.LATENT)
    points = curve(lambda price: Utility(calibration, price), prices(calibration, outcomes, limits), outcomes, limits)
    return calibration.model_copy(update={"points": tuple(points), "point": choose(points, target)})


def certain_from(outcomes: Sequence[Outcome], cheap: Mode) -> float | None:
    """The lowest score of which, and above which, at most one cheap answer in 1,000 was wrong; None for fewer than 200."""
    found, wrong = None, 0.0
    known = sorted(
        ((score, o.correct[cheap]) for o in outcomes if (score := o.scores.correct(cheap)) is not None), reverse=True
    )
    for number, (score, correct) in enumerate(known, 1):
        wrong += 1 - correct
        if number >= _CERTAIN_OF and wrong * 1000 <= number:
            found = score
    return found


def cheap_scores(outcomes: Sequence[Outcome], cheap: Mode) -> torch.Tensor:
    values = [value for o in outcomes if (value := o.scores.correct(cheap)) is not None]
    return torch.tensor(values, dtype=torch.double)


async def measure_seconds(url: str, task: TaskSpec, cheap: Mode, n: int, concurrency: int) -> dict[Mode, tuple[float, float]]:
    """Seconds of an answer as a + b · tokens, by mode, from n questions in each at that concurrency: (a, b)."""
    examples = list(itertools.islice(task.load().examples(7, "validation"), n))
    models = {}
    async with connected(url, concurrency) as server:
        for mode in dict.fromkeys((Mode.DIRECT, cheap, Mode.EXPLICIT)):
            asked = (server.complete(example.messages, mode=mode, temperature=0) for example in examples)
            answers = await gather(asked, f"seconds of {mode}")
            tokens, seconds = [answer.tokens for answer in answers], [answer.seconds for answer in answers]
            varies = len(set(tokens)) > 1 and mode is Mode.EXPLICIT
            slope, intercept = statistics.linear_regression(tokens, seconds) if varies else (0.0, statistics.fmean(seconds))
            models[mode] = (max(0.0, intercept), max(0.0, slope))
    return models
