import math
import time

import pytest

from router.calibration import Calibration, Confidence, Point
from router.policies.diffadapt import Strategies
from router.policies.named import NAMES, make
from router.policies.utility import Utility
from router.policy import Limits, Mode, RouterError, Scores, requested

POINT = Point(price=0.001, accuracy=0.98, explicit_share=0.3, mean_tokens=100)
CALIBRATION = Calibration(
    point=POINT,
    points=(POINT,),
    answer_tokens={Mode.DIRECT: 6, Mode.LATENT: 6},
    budget_ratio=1.5,
    longest_tokens=400,
    confidence=Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0),
)
LATENT, NO_NETWORK = Limits(can_think_latent=True), Limits(can_think_latent=False)


def scores(latent: float, *, direct: float = 0.1, explicit: float = 1.0, tokens: float = 200.0) -> Scores:
    return Scores(direct, latent, explicit, tokens)


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.LATENT, Mode.EXPLICIT])
def test_a_named_mode_is_never_overruled(mode: Mode) -> None:
    decision = requested(mode, scores(0.0))
    assert (decision.mode, decision.reason, decision.check) == (mode, "requested", False)


@pytest.mark.parametrize(
    ("asked", "price", "limits", "mode", "reason"),
    [
        (scores(0.95), 0.001, LATENT, Mode.LATENT, "worth_it"),  # 0.95 − 0.006 against 1 − 0.2
        (scores(0.70), 0.001, LATENT, Mode.LATENT, "worth_a_try"),  # would save 0.2, were it right
        (scores(0.01), 0.001, LATENT, Mode.EXPLICIT, "doubtful"),
        (scores(0.70), 0.01, LATENT, Mode.LATENT, "worth_it"),  # dear tokens
        (scores(0.70, tokens=600), 0.001, LATENT, Mode.LATENT, "worth_it"),  # a long chain
        (scores(0.70, explicit=0.4), 0.001, LATENT, Mode.LATENT, "worth_it"),  # thinking would not help either
        (scores(0.95, direct=0.97), 0.001, LATENT, Mode.DIRECT, "worth_it"),
        (Scores(direct=0.95, explicit=1.0, tokens=200), 0.001, NO_NETWORK, Mode.DIRECT, "worth_it"),
        (Scores(direct=0.01, explicit=1.0, tokens=200), 0.001, NO_NETWORK, Mode.EXPLICIT, "doubtful"),
        (scores(math.nan), 0.001, LATENT, Mode.EXPLICIT, "score_not_finite"),
        (scores(0.9, tokens=math.inf), 0.001, LATENT, Mode.EXPLICIT, "score_not_finite"),
        (Scores(), 0.001, LATENT, Mode.EXPLICIT, "no_score"),
        (scores(0.01), 0.001, Limits(True, max_cost=100), Mode.DIRECT, "cost_limit"),
        (scores(0.20), 0.001, Limits(True, max_cost=100), Mode.LATENT, "cost_limit"),
    ],
)
def test_utility_weighs_accuracy_against_tokens(asked: Scores, price: float, limits: Limits, mode: Mode, reason: str) -> None:
    decision = Utility(CALIBRATION, price).decide(asked, limits)
    assert (decision.mode, decision.reason) == (mode, reason)


def test_a_doubtful_answer_is_escalated_and_a_confident_one_kept() -> None:
    policy = Utility(CALIBRATION, 0.001)
    assert policy.decide(scores(0.7), LATENT).check
    kept, escalated = policy.check(scores(0.7), 0.95, LATENT), policy.check(scores(0.7), 0.3, LATENT)
    assert (kept.mode, kept.reason) == (Mode.LATENT, "answer_confident")
    assert (escalated.mode, escalated.reason) == (Mode.EXPLICIT, "answer_doubtful")
    assert kept.score > 0.8 > escalated.score
    assert policy.check(scores(0.7), math.nan, LATENT).mode is Mode.EXPLICIT


def test_an_answer_that_is_certain_is_not_checked() -> None:
    policy = Utility(CALIBRATION.model_copy(update={"certain_from": 0.98}), 0.001)
    assert [policy.decide(scores(sure), LATENT).check for sure in (0.97, 0.98, 0.99)] == [True, False, False]
    # Tokens that cost nothing: an answer is only tried, to be kept if it is sure of itself.
    dear = Utility(policy.calibration, 1e-6).decide(scores(0.98, explicit=0.999), LATENT)
    assert (dear.reason, dear.check) == ("worth_a_try", True)


def test_without_escalation_a_doubtful_question_is_explicit_at_once() -> None:
    decision = Utility(CALIBRATION, 0.001).decide(scores(0.7), Limits(True, can_escalate=False))
    assert (decision.mode, decision.check) == (Mode.EXPLICIT, False)


@pytest.mark.parametrize(
    ("limits", "budget"), [(LATENT, 300), (Limits(True, thinking_cap=128), 128), (Limits(True, max_cost=250), 250)]
)
def test_the_thinking_budget_follows_the_expected_length_and_the_caps(limits: Limits, budget: int) -> None:
    assert Utility(CALIBRATION, 0.001).decide(scores(0.01), limits).thinking_budget == budget


@pytest.mark.parametrize(
    ("asked", "reason", "temperature", "budget"),
    [
        (scores(0.9), "easy", 0.5, 400),
        (scores(0.5), "normal", 0.8, 1000),
        (scores(0.5, explicit=0.2), "hard", 0.4, 500),
        (scores(0.9, explicit=0.2), "hard", 0.4, 500),
    ],
)
def test_diffadapt_thinks_in_three_ways(asked: Scores, reason: str, temperature: float, budget: int) -> None:
    """On shares of the generation limit, not of what chains take: it bounds them, and cuts few."""
    policy = make("diffadapt", CALIBRATION)
    decision = policy.decide(asked, Limits(True, max_tokens=1000))
    assert (decision.mode, decision.reason) == (Mode.EXPLICIT, reason)
    assert (decision.temperature, decision.thinking_budget) == (temperature, budget)
    assert policy.decide(asked, LATENT).thinking_budget is None
    fixed = CALIBRATION.model_copy(update={"strategies": Strategies(max_tokens=100)})
    assert make("diffadapt", fixed).decide(asked, Limits(True, max_tokens=1000)).thinking_budget == budget / 10


@pytest.mark.parametrize(
    ("normal", "hard", "easy", "reason", "budget"),
    [
        (0.5, 0.3, 0.2, "normal", 1000),
        (0.2, 0.5, 0.3, "hard", 500),
        (0.1, 0.2, 0.7, "easy", 400),
        (0.4, 0.4, 0.2, "normal", 1000),  # the first of two
        (math.nan, 0.4, 0.2, "score_not_finite", None),
    ],
)
def test_diffadapts_own_classes_decide_where_the_probe_has_them(
    normal: float, hard: float, easy: float, reason: str, budget: int | None
) -> None:
    asked = Scores(0.1, 0.9, 1.0, 200.0, normal=normal, hard=hard, easy=easy)
    decision = make("diffadapt", CALIBRATION).decide(asked, Limits(True, max_tokens=1000))
    assert (decision.mode, decision.reason, decision.thinking_budget) == (Mode.EXPLICIT, reason, budget)


def test_diffadapts_chains_may_begin_with_a_sentence() -> None:
    prompted = CALIBRATION.model_copy(update={"strategies": Strategies.prompted("<think>\n")})
    suffixes = {make("diffadapt", prompted).decide(asked, LATENT).suffix for asked in (scores(0.9), scores(0.5))}
    assert len(suffixes) == 2
    assert all(suffix.startswith("<think>\nI ") and suffix.endswith(".\n") for suffix in suffixes)


@pytest.mark.parametrize(
    ("entropy", "limits", "mode", "reason"),
    [
        (0.1, LATENT, Mode.LATENT, "entropy_low"),
        (0.1, NO_NETWORK, Mode.DIRECT, "entropy_low"),
        (0.6, NO_NETWORK, Mode.EXPLICIT, "entropy_high"),
        (math.nan, NO_NETWORK, Mode.EXPLICIT, "score_not_finite"),
        (None, NO_NETWORK, Mode.EXPLICIT, "no_score"),
    ],
)
def test_entropy_needs_no_calibration(entropy: float | None, limits: Limits, mode: Mode, reason: str) -> None:
    decision = make("entropy", None).decide(Scores(entropy=entropy), limits)
    assert (decision.mode, decision.reason) == (mode, reason)


def test_always_means_always() -> None:
    assert make("always-explicit", None).decide(scores(1.0), LATENT).mode is Mode.EXPLICIT
    assert make("always-latent", None).decide(scores(0.0), LATENT).mode is Mode.LATENT
    assert make("always-latent", None).decide(scores(0.0), NO_NETWORK).mode is Mode.DIRECT


def test_unknown_and_uncalibrated_policies_are_refused() -> None:
    with pytest.raises(RouterError, match="utility, diffadapt"):
        make("clever", CALIBRATION)
    for name in ("utility", "diffadapt"):
        with pytest.raises(RouterError, match="router fit"):
            make(name, None)
    assert all(make(name, CALIBRATION) for name in NAMES)


def test_a_decision_takes_less_than_a_millisecond() -> None:
    policy, asked, times = Utility(CALIBRATION, 0.001), scores(0.7), []
    for _ in range(500):
        started = time.perf_counter()
        policy.decide(asked, LATENT)
        policy.check(asked, 0.9, LATENT)
        times.append(time.perf_counter() - started)
    assert sorted(times)[495] < 1e-3


@pytest.mark.parametrize(
    ("latent", "by_latents", "fewest"),
    [
        (0.90, ((4, 0.40), (8, 0.89)), 8),
        (0.90, ((4, 0.95), (8, 0.89)), 4),
        (0.90, ((4, 0.40), (8, 0.80)), 16),
        (0.90, ((32, 0.99),), 16),  # never more than are asked for
        (None, ((4, 0.95),), 16),
        (math.nan, ((4, math.nan),), 16),
    ],
)
def test_as_few_latents_as_suffice(latent: float | None, by_latents: tuple[tuple[int, float], ...], fewest: int) -> None:
    assert Scores(latent=latent, by_latents=by_latents).fewest_latents(16, max_loss=0.02) == fewest
