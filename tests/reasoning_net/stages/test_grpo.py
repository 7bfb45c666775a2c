import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.stages import grpo
from reasoning_net.stages.grpo import GrpoConfig, grpo_loss
from reasoning_net.stages.sft import SftConfig, load_net
from reasoning_net.stages.sft import main as sft
from reasoning_net.tasks import DemoTask, TaskSpec

CONFIG = GrpoConfig(init=Path(), output=Path(), kl_weight=0.0)


def test_the_loss_is_the_clipped_policy_gradient() -> None:
    old = torch.zeros(2, 3)
    log_probs = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages = torch.tensor([1.0, -1.0])
    loss, kl, clipped = grpo_loss(log_probs, old, log_probs.detach(), mask, advantages, CONFIG)
    # Reply 1: min(e^0.5, 1.2) + 1 + 1 over 3; reply 2: −max(e^−0.5, 0.8) − 1 over 2.
    assert loss.item() == pytest.approx(-((1.2 + 2) / 3 - (0.8 + 1) / 2) / 2)
    assert kl == 0.0
    assert clipped == pytest.approx(2 / 5)
    loss.backward()
    assert log_probs.grad[0, 0] == 0  # clipped: no push beyond the bound
    assert log_probs.grad[1, 2] == 0  # not a token
    assert log_probs.grad[0, 1] < 0 < log_probs.grad[1, 1]


def test_clip_higher_and_kl() -> None:
    log_probs, zeros, mask = torch.full((1, 1), 0.25), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    _, _, clipped = grpo_loss(log_probs, zeros, zeros, mask, torch.ones(1), CONFIG)
    _, _, unclipped = grpo_loss(log_probs, zeros, zeros, mask, torch.ones(1), replace(CONFIG, clip_high=0.3))
    assert (clipped, unclipped) == (1.0, 0.0)
    plain, _, _ = grpo_loss(log_probs, log_probs, zeros, mask, torch.ones(1), CONFIG)
    held, kl, _ = grpo_loss(log_probs, log_probs, zeros, mask, torch.ones(1), replace(CONFIG, kl_weight=0.5))
    assert kl > 0
    assert float(held) == pytest.approx(float(plain) + 0.5 * kl)


class EvenTask(DemoTask):
    """Rewards what even a random base does half of the time, so that groups differ."""

    def is_correct(self, reply: str, answer: str) -> bool:
        return len(reply) % 2 == 0


def test_a_short_run_learns_from_rewards_and_resumes(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sft(
        SftConfig(
            model=str(tiny_base), output=tmp_path / "sft", steps=2, batch_size=8, num_latents=4, max_latents=8,
            conditioner="all", hidden_size=32, num_layers=1,
        )
    )  # fmt: skip
    monkeypatch.setattr(TaskSpec, "load", lambda self: EvenTask())
    config = GrpoConfig(
        model=str(tiny_base), init=tmp_path / "sft", output=tmp_path / "grpo", steps=4, questions=8, num_latents=4,
        sampling=grpo.GrpoSampling(max_tokens=6, temperature=1.0, top_p=1.0, copies=4), backend="transformers",
        evaluate_on=8, inner_steps=2, shapings=("seed", "d3s"),
    )  # fmt: skip
    grpo.main(replace(config, steps=2))
    (tmp_path / "grpo" / "run" / "state.pt").rename(tmp_path / "state.pt")
    before = (tiny_base / "model.safetensors").read_bytes()
    grpo.main(config)
    log = [json.loads(line) for line in (tmp_path / "grpo" / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert 0 < log[0]["reward"] < 1
    assert {"kl", "clipped", "rollouts a second", "groups without variance"} <= set(log[-1])
    assert (tmp_path / "grpo" / "run" / "curves.png").stat().st_size > 1000
    assert (tiny_base / "model.safetensors").read_bytes() == before
    first, last = (load_net(tmp_path / name)[0].state_dict() for name in ("sft", "grpo"))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_unknown_shapings_are_named(tiny_base: Path) -> None:
    with pytest.raises(StageError, match="no shaping luck"):
        grpo.main(GrpoConfig(model=str(tiny_base), init=Path(), output=Path(), shapings=("luck",)))


@torch.no_grad()
def test_reward_groups_follow_the_questions(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    examples = [next(DemoTask().examples(seed, "validation")) for seed in range(2)]
    replies = [[grpo.Reply([], e.reply, True), grpo.Reply([], "no idea", True)] for e in examples]
    groups = grpo.reward(replies, examples, DemoTask())
    assert groups.rewards.tolist() == [[1, 0], [1, 0]]
    assert groups.answers[0] == [examples[0].answer, None]
    assert base.hidden_size == 64
