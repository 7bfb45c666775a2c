import pytest

from server.engine.shadow import answer_of, estimated_regret


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Ann has 4 pens.", "So Ann now has 4 pens", True),
        ("Ann has 4 pens.", "Ann has 5 pens.", False),
        ("Paris.", " paris", True),
        ("Paris", "Rome", False),
        ("It is 1,000.", "1,000", True),
    ],
)
def test_answers_are_compared_by_their_last_number_or_their_words(one: str, other: str, alike: bool) -> None:
    assert (answer_of(one) == answer_of(other)) is alike


def test_regret_is_what_the_other_mode_would_have_brought() -> None:
    assert estimated_regret(0.5, 1.0) == pytest.approx(1.0)
    assert estimated_regret(1.0, 0.5) == pytest.approx(-1.0)
    assert estimated_regret(0.8, 0.8) == pytest.approx(0.0)
    assert estimated_regret(None, 0.8) == 0.0
