"""Questions about others are the same sums, in as many tokens; so are those whose idle sentences stand elsewhere."""

import random
import re
from itertools import islice

import pytest

from reasoning_net.data import Columns, DataTask
from reasoning_net.demo.questions import FAMILIES, Question, questions
from reasoning_net.demo.renamed import renamed, reordered
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.tasks import DemoTask

ANCHORS = re.compile(r"In \w+,|On the \w+ day,|At the \w+ (?:stop|bell),")


@pytest.fixture(scope="module")
def many() -> list[Question]:
    return list(islice(questions(5, "test", families=FAMILIES), 300))


def test_words_become_others_of_as_many_tokens(many: list[Question], base: FrozenBase) -> None:
    def tokens(text: str) -> list[int]:
        return base.tokenizer.encode(text, add_special_tokens=False)

    for question in many:
        other = renamed(question.question)
        assert other != question.question
        assert len(tokens(other)) == len(tokens(question.question))
        assert [w for w in other.split() if w.isdigit()] == [w for w in question.question.split() if w.isdigit()]
    assert renamed("Ann has 5 pens. In January, she finds 1 pen. How many pens does Ann have now?") == (
        "Tom has 5 problems. In June, she finds 1 problem. How many problems does Tom have now?"
    )


def test_words_that_differ_stay_apart(many: list[Question]) -> None:
    words = {word.strip(".,?") for question in many for word in question.question.split()}
    for question in many:
        here = {word.strip(".,?") for word in question.question.split()}
        assert len({renamed(word) for word in here}) == len(here), question.question
    assert "problems" not in words


def test_idle_sentences_move_and_the_others_keep_their_order(many: list[Question]) -> None:
    rng, moved = random.Random(0), 0

    def said(text: str) -> list[str]:
        return [sentence.split(", ", 1)[-1] for sentence in text.split(". ")]

    for question in many:
        other = reordered(question.question, question.idle, rng)
        assert sorted(said(other)) == sorted(said(question.question))
        idle = {sentence.split(", ", 1)[1].rstrip(".") for sentence in question.idle}
        assert [s for s in said(other) if s not in idle] == [s for s in said(question.question) if s not in idle]
        assert ANCHORS.findall(other) == ANCHORS.findall(question.question)
        moved += other != question.question
        assert question.idle or other == question.question
    assert moved > 100


def test_data_from_files_needs_a_column(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1 + 1 pens?", "answer": "2", "other": "1 + 1 cups?"}\n')
    (example,) = DataTask(str(path), Columns(renamed="other"), whole=True).examples(0, "test")
    task = DataTask(str(path), Columns(), whole=True)
    assert task.renamed(example).messages[-1]["content"] == "1 + 1 cups?"
    (plain,) = task.examples(0, "test")
    with pytest.raises(StageError, match="--columns renamed"):
        task.renamed(plain)
    with pytest.raises(StageError, match="Only the demo"):
        task.reordered(plain, random.Random(0))


def test_the_demo_s_task_asks_them() -> None:
    example = next(DemoTask().examples(1, "test"))
    assert DemoTask().renamed(example).answer == example.answer
    assert DemoTask().renamed(example).messages != example.messages
