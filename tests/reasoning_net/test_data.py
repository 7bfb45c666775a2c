import itertools
import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset

from reasoning_net.data import PRESETS, DataTask, parse_columns
from reasoning_net.demo.questions import split_of
from reasoning_net.errors import StageError
from reasoning_net.tasks import DemoTask, TaskSpec


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


GSM8K = {"question": "Natalia sold 48 clips, then half as many. How many?", "answer": "48/2 = <<48/2=24>>24\n#### 72"}
MATH = {"problem": "Half of 1?", "level": "Level 5", "type": "Algebra", "solution": "It is $\\boxed{\\frac{1}{2}}$."}
DEEPSCALER = {"problem": "Half of 1?", "answer": "\\frac{1}{2}", "solution": "Halve it."}


@pytest.mark.parametrize(
    ("preset", "row", "right", "wrong"),
    [
        ("gsm8k", GSM8K, "So she sold 72 clips.", "So she sold 73 clips."),
        ("math", MATH, "The answer is \\boxed{0.5}", "The answer is \\boxed{2}"),
        ("deepscaler", DEEPSCALER, "we find $\\frac{2}{4}$", "we find $\\frac{2}{3}$"),
    ],
)
def test_presets_read_questions_and_check_answers(
    tmp_path: Path, preset: str, row: dict[str, str], right: str, wrong: str
) -> None:
    task = DataTask(write(tmp_path / "rows.jsonl", [row]), PRESETS[preset], whole=True)
    example = next(task.examples(0, "test"))
    assert example.messages == [{"role": "user", "content": row.get("question") or row["problem"]}]
    assert "<<" not in example.reply
    assert task.is_correct(right, example.answer)
    assert not task.is_correct(wrong, example.answer)
    assert example.level == (5 if preset == "math" else 1)


def test_bad_rows_are_counted_and_named_by_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": "1+1?", "answer": "2"}, "{broken", {"question": "2+2?"}, [1], {"question": " ", "answer": "1"}]
    with caplog.at_level(logging.WARNING):
        task = DataTask(write(tmp_path / "rows.jsonl", rows), PRESETS["gsm8k"], whole=True)
    assert task.bad_rows == 4
    assert "row 2 is left out" in caplog.text
    assert "row 3 is left out: it has no column 'answer'; it has question" in caplog.text
    assert "4 bad rows" in caplog.text
    assert len(list(task.examples(0, "validation"))) == 1


def test_parquet_and_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    Dataset.from_dict({"prompt": ["1+1?", "2+2?"], "target": [2, 4]}).to_parquet(path)
    task = DataTask(str(path), parse_columns(None, "question=prompt,answer=target"), whole=True)
    assert sorted(example.answer for example in task.examples(0, "test")) == ["2", "4"]


def test_rows_fall_into_splits_by_their_question(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(200)]
    task = DataTask(write(tmp_path / "rows.jsonl", rows), PRESETS["gsm8k"])
    test = list(task.examples(0, "test"))
    assert 5 < len(test) < 50
    assert all(split_of(example.messages[0]["content"]) == "test" for example in test)
    train = [example.answer for example in itertools.islice(task.examples(0, "train"), 500)]  # endless
    assert len(train) == 500
    assert len(set(train)) < 200


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", "There is no file"),
        ("nobody/nothing:train", "cannot be loaded"),
        ("demo:flying", "no family flying"),
        ("demo@9", "1 to 8 steps, not 9"),
        ("demo:counting@few", "the most steps"),
    ],
)
def test_unknown_sources_say_what_to_give(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StageError, match=message):
        TaskSpec(source).load()


def test_unknown_presets_and_columns() -> None:
    with pytest.raises(StageError, match="There are: gsm8k"):
        parse_columns("gsm9k", "")
    with pytest.raises(StageError, match="not colour"):
        parse_columns(None, "colour=red")


def test_demo_families_can_be_left_out() -> None:
    families = {example.family for example in itertools.islice(DemoTask(("riding",)).examples(0, "train"), 200)}
    assert families == {"riding", "small talk"}


def test_the_demos_questions_may_be_of_few_steps() -> None:
    task = TaskSpec("demo:counting@3").load()
    assert task.levels == 3
    for split in ("train", "test"):
        levels = {example.level for example in itertools.islice(task.examples(0, split), 60)}
        assert levels - {0} == {1, 2, 3}


def test_a_finite_data_set_is_gone_through_once(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(50)]
    task = DataTask(write(tmp_path / "rows.jsonl", rows), PRESETS["gsm8k"])
    once = [example.messages[-1]["content"] for example in task.once(0, "train")]
    assert len(once) == len(set(once)) == task.size("train")
    endless = [example.messages[-1]["content"] for example in itertools.islice(task.examples(0, "train"), 100)]
    assert endless[: len(once)] == once
    assert len(endless) == 100
    assert DemoTask().size("train") is None


def test_the_whole_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[object] = [{"question": "1+1?", "answer": "2"}]
    DataTask(write(tmp_path / "rows.jsonl", rows), PRESETS["gsm8k"], whole=True)
    assert "the same rows train, validate and test" in caplog.text


def test_a_source_has_a_name_without_directories() -> None:
    assert TaskSpec("/home/me/rows.jsonl").name == "rows.jsonl"
    assert TaskSpec("openai/gsm8k:main:train").name == "openai/gsm8k:main:train"
