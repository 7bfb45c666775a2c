import json
from itertools import islice

import pytest

from reasoning_net.demo.questions import FAMILIES, final_number, questions, split_of


@pytest.mark.parametrize("family", FAMILIES)
def test_chain_and_reply_reach_the_answer(family: str) -> None:
    for question in islice(questions(0, "train", families=(family,)), 300):
        assert question.family == family
        assert 1 <= question.steps <= 8
        assert 0 <= question.answer <= 99
        assert final_number(question.reply) == question.answer
        assert question.chain.endswith(f"So the answer is {question.answer}.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_calculation_in_a_chain_is_right(family: str) -> None:
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "x": int.__mul__, "/": int.__floordiv__}
    for question in islice(questions(1, "train", families=(family,)), 300):
        words = question.chain.replace(",", " ").replace(".", " ").replace(":", " ").replace("?", " ").split()
        for at, word in enumerate(words):
            if word == "=" and words[at - 2] in operations and words[at - 3].isdigit():
                left, op, right = int(words[at - 3]), words[at - 2], int(words[at - 1])
                assert operations[op](left, right) == int(words[at + 1]), question.chain


def test_splits_are_disjoint_and_repeatable() -> None:
    drawn = {split: [q.question for q in islice(questions(7, split), 500)] for split in ("train", "validation", "test")}
    assert not set(drawn["train"]) & set(drawn["test"])
    assert all(split_of(text) == split for split, texts in drawn.items() for text in texts)
    assert drawn["test"] == [q.question for q in islice(questions(7, "test"), 500)]
    assert drawn["test"] != [q.question for q in islice(questions(8, "test"), 500)]


def test_length_does_not_give_the_steps_away() -> None:
    sentences: dict[int, set[int]] = {}
    for question in islice(questions(3, "train"), 2000):
        sentences.setdefault(question.question.count("."), set()).add(question.steps)
    assert len(sentences[7]) >= 4


def test_public_json_hides_the_chain() -> None:
    question = next(questions(0, "test"))
    assert set(json.loads(question.public_json())) == {"question", "answer", "steps", "family"}


@pytest.mark.parametrize(("reply", "number"), [("Ann has 7 pens.", 7), ("From 3 to 12", 12), ("none", None), ("", None)])
def test_final_number(reply: str, number: int | None) -> None:
    assert final_number(reply) == number
