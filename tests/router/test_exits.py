"""When a chain may end early."""

import pytest

from router.exits import Attempt, Chain, Ending, ExitRule, Trial, calibrated, earliest, ending, is_due, play, played


def trial(at: int, answer: str = "9", mean: float = 0.99, entropy: float = 0.01) -> Trial:
    return Trial(at, answer, 5, mean, mean, entropy)


SURE = ExitRule(confidence=0.9, agreeing=2, first=0.5, gap_tokens=10, max_trials=3)


def test_trials_begin_at_a_share_of_the_expected_chain_and_keep_a_gap() -> None:
    assert not is_due(SURE, 49, 9, (), 100.0, 1.0)
    assert is_due(SURE, 50, 1, (), 100.0, 1.0)
    assert not is_due(SURE, 59, 2, [trial(50)], 100.0, 1.0)
    assert is_due(SURE, 60, 2, [trial(50)], 100.0, 1.0)
    assert not is_due(SURE, 999, 9, [trial(50), trial(60), trial(70)], 100.0, 1.0)


def test_no_trial_where_the_model_would_hardly_end() -> None:
    careful = SURE.model_copy(update={"closes": 0.1})
    assert not is_due(careful, 60, 2, (), 100.0, 0.05)
    assert is_due(careful, 60, 2, (), 100.0, 0.1)


def test_what_tells_where_a_model_would_end_needs_no_fifth_step() -> None:
    assert is_due(ExitRule(closes=0.1), 60, 1, (), None, 0.2)
    assert [earliest(SURE, trials, expected) for trials, expected in (((), None), ((), 99.0), ([trial(50)], 99.0))] == [
        0,
        50,
        60,
    ]


@pytest.mark.parametrize("expected", [None, float("nan"), float("inf")])
def test_where_nothing_is_expected_trials_begin_at_the_fifth_step(expected: float | None) -> None:
    assert not is_due(SURE, 400, 4, (), expected, 1.0)
    assert is_due(SURE, 400, 5, (), expected, 1.0)


def test_sure_trials_that_agree_are_the_answer() -> None:
    assert ending(SURE, ()) is None
    assert ending(SURE, [trial(1)]) is None
    assert ending(SURE, [trial(1, "8"), trial(2)]) is None
    assert ending(SURE, [trial(1), trial(2, mean=0.8)]) is None
    assert ending(SURE, [trial(1, mean=0.5), trial(2)]) is Ending.ANSWER


def test_flat_entropy_is_a_plateau_where_it_is_low_and_no_hope_where_it_is_high() -> None:
    rule = ExitRule(plateau_entropy=0.2, give_up_entropy=1.0)
    flat = [trial(at, str(at), 0.5, 0.1) for at in range(3)]
    assert ending(rule, flat) is Ending.PLATEAU
    assert ending(rule, [trial(0, "0", 0.5, 0.5), *flat[1:]]) is None  # it has just fallen
    lost = [trial(at, str(at), 0.1, 1.5) for at in range(4)]
    assert ending(rule, lost[:3]) is None
    assert ending(rule, lost) is Ending.GIVE_UP
    assert ending(rule, [trial(0, "0", 0.1, 2.5), *lost[1:]]) is None
    assert ending(ExitRule(), lost) is None


def test_what_a_rule_makes_of_a_chain_counts_every_trial() -> None:
    attempts = tuple(Attempt(trial(at), right, right, 0.0) for at, right in ((20, False), (60, True), (80, True), (100, True)))
    chain = Chain(1, True, 110, 118, 100.0, attempts)
    ended = play(SURE, chain)
    assert (ended.ending, ended.right, ended.trials, ended.tokens) == (Ending.ANSWER, True, 2, 80 + 5 + 2 * 5)
    never = play(SURE.model_copy(update={"confidence": 1.0}), chain)
    assert (never.ending, never.right, never.trials, never.tokens) == (None, True, 3, 118 + 3 * 5)
    assert chain.first_right is attempts[1]


def chains(right_at: int, n: int = 40) -> list[Chain]:
    """Of ten steps of 20 tokens; trials are right, and sure, from step `right_at` on."""
    attempts = tuple(
        Attempt(trial(20 * step, str(min(step, right_at)), 0.99 if step >= right_at else 0.6), step >= right_at, True, 0.0)
        for step in range(1, 11)
    )
    return [Chain(1, True, 205, 213, 210.0, attempts)] * n


def test_the_cheapest_rule_within_the_loss_is_calibrated() -> None:
    early = chains(5)
    rule = calibrated(early, 0.0)
    assert rule is not None
    of = played(rule, early)
    assert of["right"] == 1.0
    assert of["ended"] == 1.0
    assert of["tokens"] < 150
    assert calibrated(chains(11), 0.0) is None  # no trial is ever right
    mixed = [*chains(5, 39), *chains(11, 1)]
    assert calibrated(mixed, 0.03) is not None
