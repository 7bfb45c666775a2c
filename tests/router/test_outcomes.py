import pytest

from router.outcomes import Outcome, apply, from_tensors, summarise, to_tensors
from router.policies.always import Always
from router.policies.utility import Utility
from router.policy import Limits, Mode, Scores
from tests.router.test_policy import CALIBRATION

OUTCOME = Outcome(
    Scores(0.125, 0.75, 1.0, 200.0),
    0.25,
    {Mode.DIRECT: 0.0, Mode.LATENT: 0.0, Mode.EXPLICIT: 1.0},
    {Mode.DIRECT: 6.0, Mode.LATENT: 6.0, Mode.EXPLICIT: 250.0},
    {Mode.DIRECT: 0.01, Mode.LATENT: 0.02, Mode.EXPLICIT: 0.5},
)


def test_an_escalated_question_pays_for_both_answers() -> None:
    spent = apply(Utility(CALIBRATION, 0.001), OUTCOME, Limits(True))
    assert (spent.mode, spent.correct, spent.tokens, spent.escalated) == (Mode.EXPLICIT, 1.0, 256.0, True)
    assert spent.seconds == pytest.approx(0.52)


def test_a_chain_that_is_cut_costs_its_budget_and_is_wrong() -> None:
    spent = apply(Always(Mode.EXPLICIT), OUTCOME, Limits(True, thinking_cap=100))
    assert (spent.correct, spent.tokens) == (0.0, 100.0)
    assert spent.seconds == pytest.approx(0.2)


def test_columns_keep_everything_but_the_seconds() -> None:
    without_network = Outcome(Scores(direct=0.5), None, {Mode.DIRECT: 1.0}, {Mode.DIRECT: 4.0})
    first, second = from_tensors(to_tensors([OUTCOME, without_network]))
    assert (first.scores, first.confidence, first.correct, first.tokens) == (
        OUTCOME.scores, OUTCOME.confidence, OUTCOME.correct, OUTCOME.tokens,
    )  # fmt: skip
    assert second == without_network


def test_a_point_sums_up() -> None:
    limits = Limits(True)
    spent = [apply(Always(mode), OUTCOME, limits) for mode in (Mode.LATENT, Mode.EXPLICIT)]
    point = summarise(spent, price=0.5)
    assert (point.accuracy, point.explicit_share, point.mean_tokens) == (0.5, 0.5, 128.0)
