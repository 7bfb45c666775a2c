import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.lora import Adapter
from reasoning_net.stages import pear
from reasoning_net.tasks import DemoTask, TaskSpec


def test_a_right_answer_is_rewarded_for_thinking_with_little_entropy() -> None:
    entropy = torch.tensor(
        [[0.6, 0.2, 0.1, 0.3], [0.1, 0.1, 0.4, 0.4], [0.6, 0.2, 0.1, 0.3], [2.0, 2.0, 0.0, 0.0], [0.6, 0.2, 9.0, 9.0]]
    )
    thinks = torch.tensor([[True, True, False, False]] * 5)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[4, 3] = False
    right = torch.tensor([True, True, False, True, False])
    ended = torch.tensor([True, True, True, True, False])
    rewards = pear.pear_reward(entropy, thinks, mask, right, ended, 1.0)
    # 1 − (0.4 − 0.2); an answer less certain than its chain: 1 at most; wrong: the format; 1 − 2 is allowed; wrong and unended.
    assert rewards.tolist() == pytest.approx([0.8, 1.0, 0.1, -1.0, 0.0])
    assert pear.pear_reward(entropy, thinks, mask, right, ended, 0.5)[0] == pytest.approx(1 - (0.4 - 0.1))


def test_thinking_goes_up_to_its_end() -> None:
    tokens = torch.tensor([[5, 7, 8, 9, -100], [7, 5, 8, 7, 5], [7, 8, 7, 8, 1]])
    assert pear.thinking_mask(tokens, [7, 8]).sum(1).tolist() == [1, 5, 0]
    assert pear.thinking_mask(tokens, [8]).sum(1).tolist() == [2, 2, 1]
    assert bool(pear.thinking_mask(tokens[:, :1], [7, 8]).all())


def test_an_adapter_changes_nothing_until_it_is_trained_and_is_saved_as_peft_does(tiny_base: Path, tmp_path: Path) -> None:
    base, again = FrozenBase(tiny_base), FrozenBase(tiny_base)
    before = base.read([[5, 6, 7]]).hidden_states
    adapter = Adapter(base.model, 4, 8.0)
    torch.testing.assert_close(base.read([[5, 6, 7]]).hidden_states, before)
    with torch.no_grad():
        for part in adapter.parts:
            part.b.normal_()
    changed = base.read([[5, 6, 7]]).hidden_states
    assert not torch.allclose(changed, before, atol=1e-3)
    adapter.save(tmp_path, str(tiny_base))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    query = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    delta = config["lora_alpha"] / config["r"] * weights[f"{query}B.weight"] @ weights[f"{query}A.weight"]
    plain = again.model.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(base.model.model.layers[1].self_attn.q_proj.weight, plain + delta)
    Adapter(again.model, 4, 8.0).load(tmp_path)
    torch.testing.assert_close(again.read([[5, 6, 7]]).hidden_states, changed)


def test_a_base_without_attention_projections_is_refused(tiny_base: Path) -> None:
    with pytest.raises(StageError, match="has no q_proj"):
        Adapter(FrozenBase(tiny_base).model.model.layers[0].mlp, 4, 8.0)


class EvenTask(DemoTask):
    def is_correct(self, reply: str, answer: str) -> bool:
        return len(reply) % 2 == 0


def test_a_short_run_trains_the_adapter_alone_and_resumes(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskSpec, "load", lambda self: EvenTask())
    monkeypatch.setattr(pear, "is_right", lambda reply, example, task, layout: task.is_correct(reply.text, example.answer))
    before = (tiny_base / "model.safetensors").read_bytes()
    config = pear.PearConfig(
        model=str(tiny_base), output=tmp_path, steps=4, questions=3, micro_batch=2, rank=2, evaluate_on=4,
        sampling=pear.PearSampling(max_tokens=10, copies=4),
    )  # fmt: skip
    pear.main(replace(config, steps=2))
    first = load_file(tmp_path / "adapter_model.safetensors")
    result = pear.main(config)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert {"reward", "right", "tokens", "entropy of thinking"} <= set(log[-1])
    last = load_file(tmp_path / "adapter_model.safetensors")
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert set(result) == {"before", "after"}
    assert (tiny_base / "model.safetensors").read_bytes() == before


def test_micro_batches_change_nothing(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskSpec, "load", lambda self: EvenTask())
    monkeypatch.setattr(pear, "is_right", lambda reply, example, task, layout: task.is_correct(reply.text, example.answer))
    config = pear.PearConfig(
        model=str(tiny_base), output=tmp_path, steps=1, questions=4, rank=2, evaluate_on=1,
        sampling=pear.PearSampling(max_tokens=8, copies=4),
    )  # fmt: skip
    for size in (4, 1):
        pear.main(replace(config, output=tmp_path / str(size), micro_batch=size))
    together, alone = (load_file(tmp_path / str(size) / "adapter_model.safetensors") for size in (4, 1))
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, alone[name], rtol=0.05, atol=1e-4)
