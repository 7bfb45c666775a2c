import pytest

from server.engine.budgets import Reserve


@pytest.mark.parametrize(
    ("limit", "budget"),
    [(1000, 934), (200, 134), (130, 64), (128, 62), (100, 48), (21, 8), (4, 0), (2, 0), (0, 0)],
)
def test_an_answer_has_its_reserve_and_of_a_short_reply_half(limit: int, budget: int) -> None:
    assert Reserve(64, tags=2).budget(limit) == budget
