import json
from pathlib import Path

import pytest

from reasoning_net.stages.calibrate import calibrate
from reasoning_net.stages.evaluate_router import (
    Asked,
    RouterEvalConfig,
    areas,
    best_at,
    forecasts,
    main,
    oracle,
    play,
    policy_curves,
)
from router.calibration import Confidence, Target
from router.policy import Limits, Mode
from tests.router.test_calibrate import outcomes

LIMITS = Limits(can_think_latent=True)


def test_a_random_mix_recovers_half_the_gap_and_an_oracle_nearly_all() -> None:
    rows = outcomes(500, 0)
    calibration = calibrate(
        rows, Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0), Target(explicit_share=0.3), Mode.LATENT
    )
    curves = policy_curves(play(rows, calibration, LIMITS), rows, LIMITS, "tokens")
    figures = {name: areas(curve, rows, LIMITS, "tokens") for name, curve in curves.items()}
    assert figures["random mix"]["APGR"] == pytest.approx(0.5, abs=0.01)
    assert 0.5 < figures["utility, no check"]["APGR"] < figures["utility"]["APGR"] < figures["oracle"]["APGR"] < 1
    assert figures["always latent"] == {}


def test_between_two_settings_lies_their_mix() -> None:
    curve = [(10.0, 0.8), (20.0, 0.9)]
    assert [best_at(curve, cost) for cost in (0, 10, 15, 20, 99)] == pytest.approx([0.8, 0.8, 0.85, 0.9, 0.9])


def test_the_oracle_ends_where_no_answer_can_be_mended() -> None:
    rows = outcomes(200, 0)
    curve = oracle(rows, LIMITS, "tokens")
    assert curve[-1][1] == pytest.approx(1.0)
    assert curve[-1][0] < sum(o.tokens[Mode.EXPLICIT] for o in rows) / len(rows)


def test_a_signal_is_measured_by_how_it_ranks_answers_and_how_true_it_is() -> None:
    rows = outcomes(800, 0)
    calibration = calibrate(
        rows, Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0), Target(explicit_share=0.3), Mode.LATENT
    )
    figures = forecasts([Asked(o, level=i % 2, prompt_tokens=50) for i, o in enumerate(rows)], calibration, Mode.LATENT)
    assert 0.6 < figures["probe"]["AUROC"] < figures["probe and answer"]["AUROC"]
    assert figures["probe"]["calibration error"] < 0.06
    assert figures["prompt length"]["AUROC"] == 0.5  # all alike


async def test_over_http(server: str, tmp_path: Path) -> None:
    config = RouterEvalConfig(url=server, output=tmp_path, n=12, shares=(0.3,), concurrency=8)
    text = await main(config)
    assert "| auto, explicit_share 0.3 |" in text
    assert "| probe and answer |" in text
    report = json.loads((tmp_path / "router.json").read_text())
    assert report["live"]["auto"]["accuracy"] > 0.5
    assert report["tokens"]["curves"]["always explicit"][0][0] > report["tokens"]["curves"]["always latent"][0][0]
    for cost in ("tokens", "seconds"):
        assert (tmp_path / f"router_{cost}.png").read_bytes().startswith(b"\x89PNG")
