import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net import training
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout
from reasoning_net.sft import Curriculum, SftConfig, default_config, load_net, main


def small(tiny_base: Path, output: Path, steps: int) -> SftConfig:
    config = default_config(str(tiny_base), output, steps, 4, 8, "all", 32, 1, 8, 0)
    return replace(config, start_level=1, nested_sizes=(4, 8))


def test_training_lowers_the_loss_and_saves_what_it_trained(tiny_base: Path, tmp_path: Path) -> None:
    before = (tiny_base / "model.safetensors").read_bytes()
    main(small(tiny_base, tmp_path, 80))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["hints"] < 0.97 * log[0]["hints"]  # a random base cannot be steered, but z can be shaped
    net, layout = load_net(tmp_path, str(tiny_base))
    assert net is not None
    assert net.config.num_latent_tokens == 8
    assert layout.placeholder_token_id is not None
    assert (tiny_base / "model.safetensors").read_bytes() == before


def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = training.Run.steps
    monkeypatch.setattr(training.Run, "steps", lambda self, save_every=8: steps(self, save_every))
    main(small(tiny_base, tmp_path / "whole", 16))

    class PowerCutError(Exception):
        pass

    def until_12(self: training.Run, save_every: int = 8):
        for step in steps(self, save_every):
            if step == 12:
                raise PowerCutError
            yield step

    monkeypatch.setattr(training.Run, "steps", until_12)
    with pytest.raises(PowerCutError):
        main(small(tiny_base, tmp_path / "halves", 16))
    monkeypatch.setattr(training.Run, "steps", lambda self, save_every=8: steps(self, save_every))
    main(small(tiny_base, tmp_path / "halves", 16))
    whole, halves = (load_net(tmp_path / name, str(tiny_base))[0] for name in ("whole", "halves"))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, halves.state_dict()[name], msg=name)


def test_the_base_never_gets_a_gradient(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    prompt = base.read([[5, 6, 7], [8, 9]])
    latents = torch.randn(2, 4, base.hidden_size, requires_grad=True)
    layout = Layout(placeholder_token_id=3).token_ids(base.tokenizer)
    base.answer_logits(prompt, base.prefix(layout, latents), torch.tensor([[5, 6], [7, 8]])).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    assert all(p.grad is None for p in base.model.parameters())


def test_answers_do_not_depend_on_the_batch(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    layout = Layout(placeholder_token_id=3).token_ids(base.tokenizer)
    latents = torch.randn(2, 4, base.hidden_size)
    answers = torch.tensor([[5, 6], [7, 8]])
    prompts = [[5, 6, 7, 11, 12], [8, 9]]
    with torch.no_grad():
        together = base.answer_logits(base.read(prompts), base.prefix(layout, latents), answers)
        for row in range(2):
            alone = base.answer_logits(
                base.read(prompts[row : row + 1]), base.prefix(layout, latents[row : row + 1]), answers[row : row + 1]
            )
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)


def test_curriculum_opens_levels_one_by_one() -> None:
    curriculum = Curriculum(levels=3, start=1, threshold=0.5)
    for _ in range(100):
        curriculum.update([1, 0], [0.1, 9.0])
    assert curriculum.open == 2
    for _ in range(100):
        curriculum.update([1, 2], [0.1, 2.0])
    assert curriculum.open == 2
    for _ in range(100):
        curriculum.update([2, 3], [0.1, 0.1])
    assert curriculum.open == 3
