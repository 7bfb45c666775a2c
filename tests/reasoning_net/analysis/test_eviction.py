"""What policies keep of a cache whose attention is known."""

import math

import pytest
import torch

from reasoning_net.analysis.eviction import POLICIES, Seen, chance, heavy, kept, lazy, question_and_recent, recent

NO_CHANCE = torch.Generator()


def seen() -> Seen:
    """Two tokens of a question behind one of padding, then six that were written; token 0 was attended to at 2 and 6."""
    found = Seen.nothing(torch.tensor([[False, True, True]]), threshold=0.1)
    for step in range(2, 8):
        found.append()
        weights = torch.zeros(1, found.order.shape[1])
        weights[0, 1] = 0.5 if step in (2, 6) else 0.05
        weights[0, -1] = 0.3
        found.attend(weights, torch.tensor([step]))
    return found


def test_spells_are_followed() -> None:
    found = seen()
    assert found.order.tolist() == [[-1, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert found.is_question.tolist() == [[False, True, True, *[False] * 6]]
    assert found.last[0, 1] == 6
    assert found.longest_gap[0, 1] == 4, "from step 2 to step 6"
    assert found.total[0, 1] == pytest.approx(1.2)
    assert found.longest_gap[0, 3:].sum() == 0


def test_scores() -> None:
    found = seen()
    scores = lazy(found, NO_CHANCE)[0]
    assert scores[1] == pytest.approx(2 / (1 + math.exp(1 / 4)) + 2 / (1 + math.exp(1 / 4)))
    assert scores[2] == pytest.approx(0), "never attended to again"
    assert heavy(found, NO_CHANCE)[0].argmax() == 1
    assert recent(found, NO_CHANCE)[0].topk(5).indices.sort().values.tolist() == [0, 1, 2, 3, 4], (
        "the first, padding among them"
    )
    assert question_and_recent(found, NO_CHANCE)[0].topk(3).indices.tolist() == [2, 1, 8]
    assert chance(found, NO_CHANCE).shape == (1, 9)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_budget_is_kept_and_the_last_tokens_stay(name: str) -> None:
    found = seen()
    alive = found.order >= 0
    alive[0, 4] = False  # dropped earlier
    stay = kept(alive, found, POLICIES[name](found, NO_CHANCE), torch.tensor([4]), window=2)
    assert stay.sum() == 4
    assert stay[0, -2:].all()
    assert not stay[0, 0], "padding"
    assert not stay[0, 4], "what is dropped does not come back"
    assert (kept(alive, found, POLICIES[name](found, NO_CHANCE), torch.tensor([9]), window=2) == alive).all()
