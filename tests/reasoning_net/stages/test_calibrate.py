import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from reasoning_net.stages.calibrate import CalibrateConfig, calibrate, certain_from, main, measure_seconds
from reasoning_net.tasks import TaskSpec
from router.calibration import Confidence, Target
from router.drift import Drift
from router.exits import Attempt, Chain, Trial
from router.outcomes import Outcome
from router.policy import Mode, RouterError, Scores
from server.settings import DEMO_BUNDLE


def outcomes(n: int, seed: int) -> list[Outcome]:
    """A latent answer is right as often as the score says, and more confident when it is right."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        sure = rng.betavariate(4, 1)
        right = float(rng.random() < sure)
        tokens = rng.uniform(100, 300)
        made.append(
            Outcome(
                Scores(0.1, sure, 1.0, tokens),
                min(1.0, max(0.0, rng.gauss(0.9 if right else 0.5, 0.2))),
                {Mode.DIRECT: 0.1, Mode.LATENT: right, Mode.EXPLICIT: 1.0},
                {Mode.DIRECT: 6.0, Mode.LATENT: 6.0, Mode.EXPLICIT: tokens},
            )
        )
    return made


def test_a_share_holds_on_fresh_questions() -> None:
    from router.outcomes import apply, summarise
    from router.policies.utility import Utility
    from router.policy import Limits

    confidence = Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0)
    for share in (0.1, 0.3, 0.6):
        calibration = calibrate(outcomes(1500, 0), confidence, Target(explicit_share=share), Mode.LATENT)
        policy = Utility(calibration, calibration.point.price)
        fresh = summarise([apply(policy, o, Limits(True)) for o in outcomes(1500, 1)], policy.price)
        assert fresh.explicit_share == pytest.approx(share, abs=0.04)
        assert fresh.accuracy == pytest.approx(calibration.point.accuracy, abs=0.03)


@pytest.mark.parametrize(("wrong", "found"), [(range(0), 0.0), (range(1500, 3000), 0.5), (range(7), None)])
def test_answers_are_certain_where_one_in_a_thousand_is_wrong(wrong: range, found: float | None) -> None:
    """Those of 3,000 answers, from the surest on, are wrong."""
    surest = [
        Outcome(Scores(0.1, 1 - row / 3000, 1.0, 200.0), 0.9, {Mode.LATENT: float(row not in wrong)}, {}) for row in range(3000)
    ]
    assert certain_from(surest, Mode.LATENT) == (found if found is None else pytest.approx(found, abs=1e-3))
    assert certain_from(surest[:199], Mode.LATENT) is None


def test_the_reference_for_drift_counts_equal_scores() -> None:
    alike = [replace(o, scores=replace(o.scores, latent=0.9 if i % 4 else 0.2)) for i, o in enumerate(outcomes(100, 0))]
    calibration = calibrate(alike, None, Target(explicit_share=0.3), Mode.LATENT)
    assert len(calibration.score_shares) == len(calibration.score_edges) + 1
    assert sum(calibration.score_shares) == pytest.approx(1)
    drift = Drift(calibration.score_edges, calibration.score_shares)
    for o in alike * 2:
        drift.add(o.scores.latent)
    assert drift.psi < 0.05


def test_checking_answers_beats_not_checking_them_at_the_same_cost() -> None:
    confidence = Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0)
    target = Target(mean_tokens=60)
    checked = calibrate(outcomes(1500, 0), confidence, target, Mode.LATENT).point
    unchecked = calibrate(outcomes(1500, 0), None, target, Mode.LATENT).point
    assert checked.accuracy > unchecked.accuracy
    assert unchecked.escalated_share == 0


def test_the_bundle_keeps_the_target(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    said = main(CalibrateConfig(bundle, Target(explicit_share=0.3)))
    written = Bundle.load(bundle).manifest.calibration
    assert said["explicit_share"] == written.point.explicit_share == pytest.approx(0.3, abs=0.01)
    assert written.target == Target(explicit_share=0.3)
    with pytest.raises(RouterError, match="out of reach"):
        main(CalibrateConfig(bundle, Target(accuracy_floor=1.0)))
    with pytest.raises(StageError, match="--url"):
        main(CalibrateConfig(bundle, Target(p95_seconds=1)))
    assert Bundle.load(bundle).manifest.calibration == written


def test_the_bundle_keeps_the_rule_of_exits(tmp_path: Path) -> None:
    bundle, path = tmp_path / "bundle", tmp_path / "chains.jsonl"
    shutil.copytree(DEMO_BUNDLE, bundle)
    attempts = tuple(Attempt(Trial(20 * step, "9", 5, 0.99, 0.99, 0.01), True, True, 0.0) for step in range(1, 11))
    path.write_text(f"{json.dumps(asdict(Chain(1, True, 205, 213, 210.0, attempts)))}\n" * 10)
    said = main(CalibrateConfig(bundle, exit_loss=0.005, chains=path))
    rule = Bundle.load(bundle).manifest.calibration.exit
    assert said["exit"] == rule.model_dump(exclude_none=True)
    assert said["ended early"]["tokens"] < said["whole chains"]["tokens"]
    main(CalibrateConfig(bundle, Target(explicit_share=0.3)))
    assert Bundle.load(bundle).manifest.calibration.exit == rule
    for wrong in ({"exit_loss": 0.01}, {"exit_loss": 0.01, "chains": path, "target": Target(explicit_share=0.3)}, {}):
        with pytest.raises(StageError):
            main(CalibrateConfig(bundle, **wrong))


async def test_seconds_are_those_of_the_server(server: str) -> None:
    seconds = await measure_seconds(server, TaskSpec(), Mode.LATENT, n=6, concurrency=2)
    base, per_token = seconds[Mode.EXPLICIT]
    assert base + 250 * per_token > seconds[Mode.LATENT][0] > 0
