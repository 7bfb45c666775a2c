"""Token complexity on answers that were made up."""

import math

import pytest

from router.complexity import Pair, cheapest, cheapest_right, limit, realised, token_complexity


def pairs(*of: tuple[float, bool]) -> list[Pair]:
    return [Pair("budget 1", tokens, right) for tokens, right in of]


@pytest.mark.parametrize(
    ("answers", "needed"),
    [
        (pairs((10, True), (20, True)), 10),  # all right: the shortest
        (pairs((10, False), (20, False)), math.inf),
        (pairs((10, False), (20, True), (30, True)), 20),
        (pairs((10, True), (20, False), (30, False), (40, True)), 40),  # a lucky short answer
        (pairs((10, True), (20, False), (30, True)), 10),  # of equals the least
    ],
)
def test_the_length_that_classifies_best(answers: list[Pair], needed: float) -> None:
    assert token_complexity(answers) == needed


def test_the_limit_answers_the_cheapest_questions_first() -> None:
    needed = [30.0, 10.0, math.inf, 20.0]
    assert limit(needed) == [(0.0, 0.0), (2.5, 0.25), (7.5, 0.5), (15.0, 0.75)]
    assert cheapest(needed, 0.5) == 7.5
    assert cheapest(needed, 0.6) == 15.0
    assert cheapest(needed, 1.0) == 15.0, "more cannot be right"


def test_the_part_of_the_possible_saving() -> None:
    needed = [10.0, 30.0]
    assert realised(60.0, 1.0, 60.0, needed) == 0.0
    assert realised(20.0, 1.0, 60.0, needed) == 1.0
    assert realised(40.0, 1.0, 60.0, needed) == 0.5
    assert realised(40.0, 1.0, 20.0, needed) is None


def test_who_knows_all_answers_takes_lucky_ones() -> None:
    assert cheapest_right(pairs((10, True), (20, False), (30, False), (40, True))) == 10
    assert cheapest_right(pairs((10, False))) == math.inf
    assert Pair("latent 16", 9.2, True).kind == "latent"
