"""The study, on a few of the demo's chains."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from reasoning_net.analysis.importance import ImportanceConfig, main
from reasoning_net.analysis.judge import JudgeOptions, attainability
from reasoning_net.analysis.labels import Labeller, read_labels
from reasoning_net.analysis.step_probe import AS_THEY_COME
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.stages.traces import Trace
from reasoning_net.step_probe import StepProbe, StepReader
from reasoning_net.tasks import Example, TaskSpec

_N = 6


def trace(example: Example) -> Trace:
    of = {name: getattr(example, name) for name in ("messages", "reply", "answer", "level", "family", "milestones")}
    return Trace(reasoning=example.chain, correct=True, num_tokens=0, **of)


def written(directory: Path, traces: list[Trace]) -> Path:
    path = directory / "traces.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in traces))
    return path


@pytest.fixture
def traces() -> list[Trace]:
    """Of two running values; the last one's chain is wrong."""
    found = TaskSpec("demo:sharing").load().examples(3, "validation", 5)
    *right, last = [trace(example) for example in itertools.islice(found, _N)]
    return [*right, replace(last, reply="Ann has 99 pens.", correct=False)]


def test_labels_probes_answers_and_what_is_neglected(traces: list[Trace], tmp_path: Path, base: FrozenBase) -> None:
    config = ImportanceConfig(
        traces=written(tmp_path, traces), output=tmp_path / "out", seeds=1, keep=(0.3,), batch_size=5,
        other=str(DEMO_MODEL), judge=JudgeOptions(samples=2),
    )  # fmt: skip
    said = main(config)
    assert "| activations |" in said
    labelled = read_labels(tmp_path / "out" / "labels.jsonl")
    assert len(labelled) == _N
    assert labelled[-1].excluded == "the chain is wrong"
    with_labels = [one for one in labelled if one.labels]
    assert len(with_labels) >= 3
    for one in with_labels:
        assert {"important", "shortcut"} <= set(one.labels)
        assert one.labels[-1] == "shortcut", "it states the answer"
    important = [step for one in with_labels for step, label in zip(one.steps, one.labels, strict=True) if label == "important"]
    assert sum(any(character.isdigit() for character in step) for step in important) >= len(with_labels)

    figures = json.loads((tmp_path / "out" / "importance.json").read_text())
    assert figures["labels"]["sharing"]["labelled"] == len(with_labels)
    assert figures["probes"][AS_THEY_COME]["agreement"] == [1.0], "the other base is the same one"
    right = figures["answers"]["right"]["all"]
    assert right["most important"]["1.0"] == right["random"]["1.0"]
    assert figures["neglected"]["wrong"]["chains"] == figures["neglected"]["right"]["chains"] == 1
    assert (tmp_path / "out" / "importance.png").read_bytes().startswith(b"\x89PNG")
    StepProbe.load(tmp_path / "out" / "importance.safetensors").check_base(str(DEMO_MODEL))
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [len(one["scores"]) for one in scores] == [len(one.steps) for one in labelled]

    # A run that was killed in its second batch goes on behind the first, and ends where the other one did.
    path = tmp_path / "out" / "labels.jsonl"
    whole = path.read_text()
    path.write_text(whole[: -len(whole) // 20])
    reader = StepReader(base, base.layout().token_ids(base.tokenizer), sentences=True)
    labeller = Labeller(reader, config.task.load(), config.judge, config.shortcuts, config.seed)
    assert labeller.write(traces, path, config.batch_size) == labelled
    assert path.read_text() == whole
    with pytest.raises(StageError, match="of other steps"):
        main(replace(config, steps="lines"))


def test_too_few_chains_are_said(traces: list[Trace], tmp_path: Path) -> None:
    config = ImportanceConfig(traces=written(tmp_path, traces[-1:]), output=tmp_path / "out")
    with pytest.raises(StageError, match="1 × the chain is wrong"):
        main(config)
    (tmp_path / "traces.jsonl").write_text("")
    with pytest.raises(StageError, match="no finished chain"):
        main(config)


def test_attainability_goes_from_the_answer_straight_away_to_the_whole_chain() -> None:
    assert attainability(1.5, 1.5, 11.5) == 1
    assert attainability(11.5, 1.5, 11.5) == 0
    assert attainability(3.5, 1.5, 11.5) == pytest.approx(0.8)
    assert attainability(1.0, 2.0, 1.5) == 0, "no scale"
