import numpy as np
import pytest

from reasoning_net.stages.calibrate import calibrate
from router.calibration import Confidence, Target
from router.curves import areas, best_at, oracle, play, policy_curves
from router.policy import Limits, Mode
from tests.reasoning_net.stages.test_calibrate import outcomes

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
    assert best_at(curve, np.array([0.0, 10, 15, 20, 99])).tolist() == pytest.approx([0.8, 0.8, 0.85, 0.9, 0.9])


def test_the_oracle_ends_where_no_answer_can_be_mended() -> None:
    rows = outcomes(200, 0)
    curve = oracle(rows, LIMITS, "tokens")
    assert curve[-1][1] == pytest.approx(1.0)
    assert curve[-1][0] < sum(o.tokens[Mode.EXPLICIT] for o in rows) / len(rows)
