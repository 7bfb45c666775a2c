"""Steps as a probe reads them, and the file that it is kept in."""

from pathlib import Path

import pytest
import torch

from reasoning_net.bundle import fingerprint
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Question
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.step_probe import StepMlp, StepProbe, StepProbeConfig, StepReader, joined, most_important


@pytest.fixture(scope="module")
def reader(base: FrozenBase) -> StepReader:
    return StepReader(base, base.layout().token_ids(base.tokenizer), sentences=True)


def test_steps_join_to_the_chain_and_are_read_without_what_follows(reader: StepReader, asked: list[Question]) -> None:
    for question in asked[:4]:
        steps = reader.steps(f"{question.chain}\n")
        assert joined(steps, range(len(steps))) == question.chain
        assert len(steps) > question.steps + 2
        prompt = reader.base.prompt_ids([{"role": "user", "content": question.question}])
        states = reader.states(prompt, steps)
        assert states.shape == (len(steps), reader.base.num_layers * reader.base.hidden_size)
        torch.testing.assert_close(reader.states(prompt, steps[:3]), states[:3], atol=1e-3, rtol=1e-3)


def test_the_most_important_steps_stay_in_order() -> None:
    assert most_important([0.1, 0.9, 0.3, 0.8], 0.5) == [1, 3]
    assert most_important([0.1, 0.9, 0.3, 0.8], 0.0) == [1], "one at least"
    assert most_important([0.5] * 3, 1.0) == [0, 1, 2]
    assert joined(["a.", "\nb.", " c."], [1, 2]) == "b. c."


def test_a_probe_is_kept_and_belongs_to_its_base(reader: StepReader, tmp_path: Path, tiny_base: Path) -> None:
    config = StepProbeConfig(base=fingerprint(str(DEMO_MODEL)), sentences=True, hidden_size=8)
    probe = StepProbe(config, StepMlp(config.features, config.hidden_size))
    path = tmp_path / "importance.safetensors"
    probe.save(path)
    loaded = StepProbe.load(path)
    assert loaded.config == config
    states = torch.randn(5, config.features)
    assert loaded.scores(states) == probe.scores(states)
    loaded.check_base(str(DEMO_MODEL))
    with pytest.raises(StageError, match="not trained on"):
        loaded.check_base(str(tiny_base))
    chain = "Ann has 5. She finds 3. 5 + 3 = 8.\nSo the answer is 8."
    assert loaded.compressed(reader, [1], chain, 1.0) == chain
    assert len(reader.steps(loaded.compressed(reader, [1], chain, 0.5))) == 2
    assert loaded.compressed(reader, [1], "\n", 0.5) == ""


def test_what_is_no_probe_is_said(tmp_path: Path) -> None:
    (tmp_path / "some.safetensors").write_text("none")
    with pytest.raises(StageError, match="no probe of steps"):
        StepProbe.load(tmp_path / "some.safetensors")
    with pytest.raises(StageError, match="no probe of steps"):
        StepProbe.load(DEMO_MODEL / "model.safetensors")
