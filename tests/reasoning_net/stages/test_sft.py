import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout
from reasoning_net.stages.sft import SftConfig, SftOptimizer, load_net, main
from tests.server.cli import run


def small(tiny_base: Path, output: Path, steps: int) -> SftConfig:
    return SftConfig(
        model=str(tiny_base), output=output, steps=steps, batch_size=8, num_latents=4, max_latents=8, conditioner="all",
        hidden_size=32, num_layers=1, start_level=1,
    )  # fmt: skip


def test_training_lowers_the_loss_and_saves_what_it_trained(tiny_base: Path, tmp_path: Path) -> None:
    before = (tiny_base / "model.safetensors").read_bytes()
    main(small(tiny_base, tmp_path, 80))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["hints"] < 0.97 * log[0]["hints"]  # a random base cannot be steered, but z can be shaped
    net, layout = load_net(tmp_path)
    assert net.config.num_latent_tokens == 8
    assert layout.placeholder_token_id is not None
    assert (tiny_base / "model.safetensors").read_bytes() == before


def test_a_killed_run_resumes_to_the_same_network(tiny_base: Path, tmp_path: Path) -> None:
    flags = (
        "--steps 48 --save-every 8 --batch-size 8 --num-latents 4 --max-latents 16 --hidden-size 32 --num-layers 1 "
        "--conditioner all --average-decay 0.9 --accumulate 2"
    ).split()
    words = ["train", "sft", "--model", str(tiny_base), *flags, "--output"]
    command = [sys.executable, "-m", "server.cli", *words]
    assert run(*words, str(tmp_path / "whole")).exit_code == 0
    state = tmp_path / "halves" / "run" / "state.pt"
    process = subprocess.Popen([*command, str(tmp_path / "halves")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not state.exists():
        assert process.poll() is None, "the run was over before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert torch.load(state)["step"] < 48
    subprocess.run([*command, str(tmp_path / "halves")], check=True, capture_output=True)
    whole, halves = (load_net(tmp_path / name)[0].state_dict() for name in ("whole", "halves"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, halves[name], msg=name)
    curves = [
        [(r["step"], r["nll"]) for r in map(json.loads, (tmp_path / name / "run" / "log.jsonl").read_text().splitlines())]
        for name in ("whole", "halves")
    ]
    assert curves[0] == curves[1]
    assert (tmp_path / "halves" / "run" / "curves.png").exists()


def test_training_goes_on_from_a_trained_network(tiny_base: Path, tmp_path: Path) -> None:
    main(small(tiny_base, tmp_path / "first", 2))
    config = replace(small(tiny_base, tmp_path / "second", 2), init=tmp_path / "first", hidden_size=64)
    main(replace(config, optimizer=SftOptimizer(muon_lr=1e-9, adamw_lr=1e-9)))
    first, second = (load_net(tmp_path / name)[0] for name in ("first", "second"))
    assert second.config == first.config
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, second.state_dict()[name], msg=name, rtol=0.01, atol=1e-3)
    with pytest.raises(StageError, match="leave --backbone"):
        main(replace(config, output=tmp_path / "third", backbone="some/where"))


def test_the_base_never_gets_a_gradient(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    prompt = base.read([[5, 6, 7], [8, 9]])
    latents = torch.randn(2, 4, base.hidden_size, requires_grad=True)
    layout = Layout(placeholder_token_id=3).token_ids(base.tokenizer)
    base.answer_logits(prompt, base.prefix(layout, latents), torch.tensor([[5, 6], [7, 8]])).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    assert all(p.grad is None for p in base.model.parameters())


def test_two_processes_train_one_network(tiny_base: Path, tmp_path: Path) -> None:
    """As on two GPUs."""
    flags = "--steps 8 --save-every 8 --batch-size 8 --num-latents 4 --max-latents 4 --hidden-size 32 --num-layers 1".split()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "server.cli"]
    command += ["train", "sft", "--model", str(tiny_base), *flags, "--output"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    both = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True, env=environment, check=False)
    assert both.returncode == 0, both.stderr
    assert torch.load(tmp_path / "two" / "run" / "state.pt")["step"] == 8
    assert run(*command[command.index("train") :], str(tmp_path / "one")).exit_code == 0
    two, one = (load_net(tmp_path / name)[0].state_dict() for name in ("two", "one"))
    assert all(bool(tensor.isfinite().all()) for tensor in two.values())
    assert any(not torch.allclose(two[name], one[name]) for name in two)  # the second process had questions of its own
