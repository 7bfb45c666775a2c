"""The chain of attention behind an explicit answer, on weights made by hand and on the weak base."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from reasoning_net.analysis.attention import CHAIN, Signals, followed, summarise
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Question
from reasoning_net.stages.traces import Trace
from tests.server.cli import failure, run


def test_tokens_are_followed_back_up_to_the_question() -> None:
    weights = torch.zeros(8, 8)
    weights[6, 5], weights[6, 3], weights[6, 0] = 0.5, 0.3, 0.9  # what token 7 looked at, and where nothing is
    weights[4, 2], weights[4, 3] = 0.6, 0.05  # token 5
    weights[2, 1] = 0.9  # token 3: the question
    assert followed(weights, [7], 2, width=2, threshold=0.1) == [2, 3, 5]
    assert followed(weights, [7], 2, width=1, threshold=0.1) == [2, 5]
    assert followed(weights, [7], 4, width=2, threshold=0.1) == [5]
    assert followed(weights, [7], 2, width=2, threshold=0.4) == [2, 5]


def test_figures() -> None:
    signals = [Signals(right, 1 + at % 2, {CHAIN: float(at), "same": 0.0}, 4) for at, right in enumerate((False, True, True))]
    figures = summarise(signals)
    assert figures["signals"][CHAIN] == {"AUROC": 1.0, "least": 1.0}
    assert figures["signals"]["same"]["AUROC"] == 0.5
    assert (figures["right"], figures["followed"]) == (0.6667, 4.0)


def traces(asked: list[Question], path: Path) -> None:
    """A right and a wrong answer to each question, after the same chain."""
    written = []
    for question in asked:
        right = Trace(
            [{"role": "user", "content": question.question}], question.chain, question.reply, str(question.answer), True, 200,
            question.steps, question.family, (),
        )  # fmt: skip
        wrong = question.reply.replace(f" {question.answer} ", f" {question.answer + 3} ")
        written += [right, replace(right, reply=wrong, correct=False)]
    path.write_text("".join(json.dumps(asdict(trace)) + "\n" for trace in written))


def test_an_answer_that_does_not_follow_from_its_chain_is_less_sure(asked: list[Question], tmp_path: Path) -> None:
    path, output = tmp_path / "traces.jsonl", tmp_path / "attention"
    traces(asked[:4], path)
    weak = str(DEMO_MODEL.with_name("weak"))
    words = ("analyse", "attention", "--model", weak, "--traces", str(path), "--output", str(output))
    text = run(*words).stdout
    assert "8 explicit answers, 0.500 of them right" in text
    figures = json.loads((output / "attention.json").read_text())
    assert figures["signals"][CHAIN]["AUROC"] > 0.8
    assert figures["followed"] > 2
    written = (output / "signals.jsonl").read_text()
    (output / "signals.jsonl").write_text(written[: len(written) // 2])
    assert run(*words).stdout == text
    assert (output / "signals.jsonl").read_text() == written


def test_traces_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("")
    words = ("analyse", "attention", "--traces", str(tmp_path / "traces.jsonl"), "--output", str(tmp_path))
    assert "no finished chain" in failure(*words)
