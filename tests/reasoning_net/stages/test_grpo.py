import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.shaping import Shapings
from reasoning_net.stages import grpo
from reasoning_net.stages.grpo import GrpoConfig
from reasoning_net.stages.sft import SftConfig, load_net
from reasoning_net.stages.sft import main as sft
from reasoning_net.tasks import DemoTask, TaskSpec


class EvenTask(DemoTask):
    """Rewards what even a random base does half of the time, so that groups differ."""

    def is_correct(self, reply: str, answer: str) -> bool:
        return len(reply) % 2 == 0


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sft")
    sft(
        SftConfig(
            model=str(tiny_base), output=output, steps=2, batch_size=8, num_latents=4, max_latents=8, conditioner="all",
            hidden_size=32, num_layers=1,
        )
    )  # fmt: skip
    return output


@pytest.fixture(autouse=True)
def even_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskSpec, "load", lambda self: EvenTask())


def small(tiny_base: Path, trained: Path) -> GrpoConfig:
    return GrpoConfig(
        model=str(tiny_base), init=trained, output=Path(), steps=4, questions=8, num_latents=4,
        sampling=grpo.GrpoSampling(max_tokens=6, temperature=1.0, top_p=1.0, copies=4), backend="transformers", evaluate_on=8,
    )  # fmt: skip


def test_a_short_run_learns_from_rewards_and_resumes(trained: Path, tiny_base: Path, tmp_path: Path) -> None:
    config = replace(
        small(tiny_base, trained), output=tmp_path / "grpo", inner_steps=2, micro_batch=4, shapings=("seed", "d3s")
    )  # fmt: skip
    grpo.main(replace(config, steps=2))
    (tmp_path / "grpo" / "run" / "state.pt").rename(tmp_path / "state.pt")
    before = (tiny_base / "model.safetensors").read_bytes()
    grpo.main(config)
    log = [json.loads(line) for line in (tmp_path / "grpo" / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert 0 < log[0]["reward"] < 1
    assert {"kl", "clipped", "rollouts a second", "groups without variance"} <= set(log[-1])
    assert 0 < log[-1]["tokens used"] < log[-1]["mean weight"] < 1  # of all tokens sampled, and of those of used rollouts
    assert log[-1]["entropy of used tokens"] > 0
    assert (tmp_path / "grpo" / "run" / "curves.png").stat().st_size > 1000
    assert (tiny_base / "model.safetensors").read_bytes() == before
    first, last = (load_net(path)[0].state_dict() for path in (trained, tmp_path / "grpo"))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_unknown_shapings_are_named(tiny_base: Path) -> None:
    with pytest.raises(StageError, match="no shaping luck"):
        grpo.main(GrpoConfig(model=str(tiny_base), init=Path(), output=Path(), shapings=("luck",)))


@pytest.mark.parametrize(
    "options",
    [
        {"shapings": ("empo", "tw", "steer", "ppl"), "micro_batch": 2},
        {"shapings": ("spine", "hapo"), "inner_steps": 2},
        {"latent_noise": 0.3},
        {"latent_noise": 0.3, "latent_policy": True, "shapings": ("d3s",)},
    ],
)
def test_every_option_trains(trained: Path, tiny_base: Path, tmp_path: Path, options: dict[str, object]) -> None:
    config = replace(small(tiny_base, trained), output=tmp_path, steps=2, evaluate_on=0, **options)
    grpo.main(config)
    first, last = (load_net(path)[0].state_dict() for path in (trained, tmp_path))
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert all(bool(tensor.isfinite().all()) for tensor in last.values())


def test_a_policy_over_latents_wants_noise_and_one_update(tiny_base: Path, trained: Path) -> None:
    with pytest.raises(StageError, match="--latent-noise with --inner-steps 1"):
        grpo.main(replace(small(tiny_base, trained), latent_policy=True))


def test_questions_that_are_too_long_are_left_out(trained: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Raise --max-prompt-tokens"):
        grpo.main(replace(small(tiny_base, trained), output=tmp_path, questions=2, max_prompt_tokens=5))


@torch.no_grad()
def test_reward_groups_follow_the_questions(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    examples = [next(DemoTask().examples(seed, "validation")) for seed in range(2)]
    replies = [[grpo.Reply([], e.reply, True), grpo.Reply([], "no idea", True)] for e in examples]
    groups, right = grpo.reward(replies, examples, DemoTask(), Shapings())
    assert groups.rewards.tolist() == [[1, 0], [1, 0]]
    assert right == 0.5
    assert groups.answers[0] == [examples[0].answer, None]
    assert base.hidden_size == 64


def test_what_has_no_answers_is_learnt_from_by_agreement(
    trained: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users' own questions: a file without labels."""
    questions = [next(DemoTask().examples(seed, "validation")).messages[-1]["content"] for seed in range(12)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"question": one}) + "\n" for one in questions))
    monkeypatch.undo()
    spec = TaskSpec(str(tmp_path / "asked.jsonl"), columns="answer=", whole=True)
    monkeypatch.setattr("reasoning_net.data.DataTask.final_answer", lambda self, reply: str(len(reply) % 2))
    config = replace(small(tiny_base, trained), output=tmp_path / "out", task=spec, steps=2, evaluate_on=0)
    grpo.main(replace(config, shapings=("empo",)))
    log = [json.loads(line) for line in (tmp_path / "out" / "run" / "log.jsonl").read_text().splitlines()]
    assert 0.5 <= log[-1]["agreement"] <= 1
    assert log[-1]["kl"] >= 0
    with pytest.raises(StageError, match="--shaping empo"):
        grpo.main(replace(config, output=tmp_path / "labels"))
    with pytest.raises(StageError, match="nothing to learn from"):
        sft(SftConfig(model=str(tiny_base), output=tmp_path / "sft", task=spec, steps=1, batch_size=4, num_latents=2))
