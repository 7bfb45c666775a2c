"""Questions in other words and orders: figures on answers made by hand; asked for real in the test of `eval`."""

import itertools
import math

import pytest

from reasoning_net.errors import StageError
from reasoning_net.stages.perturb import Consistency, consistency_table, entropy, orders, remapped, remapped_table, summarise
from reasoning_net.tasks import DemoTask


def test_what_is_lost_by_other_words() -> None:
    figures = remapped({"latent": [1.0, 1.0, 0.0, 1.0]}, {"latent": [1.0, 0.0, 0.0, 0.5]})
    assert figures == {"latent": {"as they are": 0.75, "about others": 0.375, "lost": 0.375, "error": 0.2394}}
    assert "| latent | 0.750 | 0.375 | +0.375 ± 0.239 |" in remapped_table(figures)


def test_entropy_of_answers() -> None:
    assert entropy(["3", "3", "3"]) == 0
    assert entropy(["3", "4"]) == pytest.approx(math.log(2))
    assert entropy([None, None]) == pytest.approx(math.log(2)), "two replies without an answer do not agree"


def test_orders_of_a_question_are_different_and_itself_comes_first() -> None:
    examples = list(itertools.islice(DemoTask().examples(2, "test"), 30))
    groups = orders(DemoTask(), examples, 3, 0)
    assert 5 < len(groups) < 30
    for first, *others in groups:
        assert first in examples
        assert len({one.messages[-1]["content"] for one in (first, *others)}) == 3
        assert {one.answer for one in others} == {first.answer}
    assert groups == orders(DemoTask(), examples, 3, 0)
    with pytest.raises(StageError, match="has 1000 orders"):
        orders(DemoTask(), examples[:1], 1000, 0)


def test_consistency_as_a_confidence() -> None:
    right, wrong = Consistency(True, 0.0, 0.5), Consistency(False, 1.0, 0.5)
    figures = summarise({"latent": [right, wrong], "explicit": [right]})
    assert figures["latent"] == {
        "questions": 2, "right": 0.5, "one answer to all orders": 0.5, "AUROC, orders": 1.0, "AUROC, samples": 0.5,
    }  # fmt: skip
    assert figures["explicit"]["AUROC, orders"] is None
    assert "| explicit | 1 | 1.0 | 1.0 |  |  |" in consistency_table(figures)
