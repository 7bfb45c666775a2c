import json
import re
from collections import Counter
from itertools import islice

import pytest

from reasoning_net.demo.questions import FAMILIES, final_number, questions, split_of
from reasoning_net.demo.story import MONTHS, Calendar, Operation, Story


@pytest.mark.parametrize("family", FAMILIES)
def test_chain_and_reply_reach_the_answer(family: str) -> None:
    for question in islice(questions(0, "train", families=(family,)), 300):
        assert question.family == family
        assert 1 <= question.steps <= 8
        assert 0 <= question.answer <= 99
        assert final_number(question.reply) == question.answer
        assert question.chain.endswith(f"So the answer is {question.answer}.")


OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "x": int.__mul__, "/": int.__floordiv__}


def wrong_sums(text: str) -> int:
    sums = re.findall(r"(\d+) ([-+*x/]) (\d+) = (\d+)", text)
    return sum(OPERATIONS[op](int(left), int(right)) != int(result) for left, op, right, result in sums)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_results_are_mended_at_once_or_by_the_check(family: str) -> None:
    kinds = Counter()
    for question in islice(questions(1, "train", families=(family,)), 600):
        noticed, missed = question.chain.count("Wait, that is wrong."), "so I was wrong" in question.chain
        assert wrong_sums(question.chain) == noticed + missed, question.chain
        assert missed == ("and not what I had" in question.chain)
        kinds.update(noticed=noticed > 0, missed=missed, checked="Let me check" in question.chain, plain=not noticed + missed)
    assert all(kinds[kind] > 20 for kind in ("noticed", "missed", "checked", "plain")), kinds


def test_phrasings_are_drawn_and_a_question_keeps_its_chain() -> None:
    chains = [question.chain for question in islice(questions(2, "train"), 300)]
    assert chains == [question.chain for question in islice(questions(2, "train"), 300)]
    for phrase in ("Next: ", "Then: ", "That is ", "Let me see: ", "That leaves it: ", "That looks right."):
        assert 0.05 < sum(phrase in chain for chain in chains) / len(chains) < 0.99, phrase


@pytest.mark.parametrize("family", FAMILIES)
def test_every_line_of_a_chain_allows_a_reply(family: str) -> None:
    for question in islice(questions(4, "train", families=(family,)), 100):
        assert len(question.standing) == len(question.chain.split("\n"))
        assert question.standing[-1] == question.reply
        assert final_number(question.standing[0]) == question.values[0]
        assert question.condensed[-1] == f" {question.values[-1]}"


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


def test_what_rests_on_what() -> None:
    """Tom's pens rest on Ann's where he gets half of them, and not where he gets a number."""
    story = Story("pens", {"Tom": 2, "Ann": 4}, Calendar("In {}", MONTHS))
    story.happens("Ann buys 2 pens", Operation("Ann", "+", 2))  # line 2
    story.happens("it rains all day")
    story.happens("Ann gives half of the pens to Tom", Operation("Ann", "/", 2), Operation("Tom", "+", 3))  # line 4
    story.happens("Ann gives 1 pen to Tom", Operation("Ann", "-", 1), Operation("Tom", "+", 1))
    story.happens("Ann finds 5 pens", Operation("Ann", "+", 5))  # line 6
    assert story.dependence.reads == ((), (), (1,), (1, 2), (1, 2), (4,), (5,), (5,))
    assert story.dependence.matters == (True, False, True, True, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_line_and_sentence_has_its_dependence(family: str) -> None:
    for question in islice(questions(5, "train", families=(family,)), 100):
        lines = question.chain.split("\n")
        assert len(question.dependence.reads) == len(lines) == len(question.dependence.matters) + 3
        assert all(max(of) < line for line, of in enumerate(question.dependence.reads) if of)
        for line, matters in zip(lines[2:], question.dependence.matters, strict=False):
            assert not (matters and ("nothing changes" in line or "changes nothing" in line))
