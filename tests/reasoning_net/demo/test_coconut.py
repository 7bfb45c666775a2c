import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reasoning_net.demo import coconut
from reasoning_net.demo.base import BaseConfig
from reasoning_net.demo.coconut import CoconutConfig, answer_logits, draw_batch, rest, think, train
from reasoning_net.demo.questions import Question, draw
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LATENT_TOKEN
from tests.server.cli import failure, run


def question() -> Question:
    return draw(random.Random(3), "train", 3, "counting")


def states(base: FrozenBase, embeddings: torch.Tensor) -> torch.Tensor:
    """The final hidden states of one row of embeddings (1, T, d), without a cache."""
    return base.model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def test_a_thought_is_the_final_state_at_the_position_before(tiny_base: Path) -> None:
    """Of a padded batch with a cache, as of each question alone, read anew for each thought."""
    base = FrozenBase(tiny_base)
    prompts = [[5, 6, 7, 8], [9, 10]]
    with torch.no_grad():
        thoughts, _ = think(base, base.read(prompts), 3)
        for row, prompt in enumerate(prompts):
            inputs = base.embed(torch.tensor([prompt]))
            for number in range(3):
                state = states(base, inputs)[:, -1:]
                torch.testing.assert_close(thoughts[row, number], state[0, 0], rtol=1e-4, atol=1e-5)
                inputs = torch.cat([inputs, state], dim=1)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_what_is_written_follows_the_thoughts_and_teaches_through_them(tiny_base: Path, number: int) -> None:
    base = FrozenBase(tiny_base)
    base.model.requires_grad_(True)
    prompt, written = torch.tensor([[5, 6, 7]]), torch.tensor([[11, 12, 13]])
    logits = answer_logits(base, prompt, torch.ones(1, 3, dtype=torch.bool), number, written)
    thoughts, _ = think(base, base.read([[5, 6, 7]]), number)
    whole = torch.cat([base.embed(prompt), thoughts, base.embed(written[:, :-1])], dim=1)
    torch.testing.assert_close(logits, base.model.lm_head(states(base, whole)[:, -3:]), rtol=1e-4, atol=1e-5)
    logits.logsumexp(-1).sum().backward()
    (gradient,) = (p.grad for n, p in base.model.named_parameters() if n.endswith("layers.0.mlp.up_proj.weight"))
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_each_stage_takes_a_line_away_and_the_last_one_the_whole_chain() -> None:
    asked = question()
    lines = asked.chain.split("\n")
    for stage in (1, 2, 3):
        (newline, is_learnt), (left, _), (end, end_is_learnt), (reply, _) = rest(asked, stage, stages=3)
        assert (newline, is_learnt) == ("\n", False)
        assert left.split("\n") == lines[stage:]
        assert (end, end_is_learnt) == ("\n</think>\n\n", True)
        assert reply == f"{asked.reply}<|im_end|>"
    assert rest(asked, 4, stages=3) == [("\n</think>\n\n", False), (f"{asked.reply}<|im_end|>", True)]


def test_stages_are_shares_of_the_run() -> None:
    study = CoconutConfig(stages=4, last_stage=0.6, thoughts_per_step=2)
    assert [study.stage(share) for share in (0, 0.09, 0.11, 0.39, 0.4, 1)] == [1, 1, 2, 4, 5, 5]
    assert [study.fillers(stage) for stage in (1, 4, 5)] == [2, 8, 8]
    assert CoconutConfig(stages=0).stage(0) == 1
    assert CoconutConfig(filler="nothing").fillers(3) == 0


def test_pauses_stand_in_the_prompt(tiny_base: Path) -> None:
    base, config = FrozenBase(tiny_base), BaseConfig(output=tiny_base)
    pause = base.tokenizer.convert_tokens_to_ids(LATENT_TOKEN)
    for filler, counted in (("pauses", 6), ("thoughts", 0)):
        study = CoconutConfig(filler=filler, thoughts_per_step=3, batch_size=4)
        batch = draw_batch(config, study, base, stage=2, step=0)
        assert (batch.prompt_ids == pause).sum(1).tolist() == [counted] * 4


def test_a_resumed_run_gives_the_same_weights(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of a stage, after the optimiser was reset."""
    study = CoconutConfig(coconut=True, stages=2, batch_size=2, max_steps=1)
    whole, halves = (BaseConfig(output=tmp_path / name, start=tiny_base, steps=8) for name in ("whole", "halves"))
    train(whole, study)
    monkeypatch.setattr(coconut, "_SAVE_EVERY", 3)

    def drawn_until_the_sixth_step(*arguments: Any) -> object:
        if arguments[-1] == 5:
            raise KeyboardInterrupt
        return draw_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(coconut, "draw_batch", drawn_until_the_sixth_step)
        with pytest.raises(KeyboardInterrupt):
            train(halves, study)
    assert torch.load(tmp_path / "halves" / "run" / "state.pt")["step"] == 3
    train(halves, study)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_the_command_trains_asks_and_reports(tiny_base: Path, tmp_path: Path) -> None:
    flags = "--coconut --families counting --stages 1 --steps 2 --batch-size 2 --max-steps 2".split()
    command = ["demo", "train-base", *flags, "--from", str(tiny_base), "--output", str(tmp_path)]
    ended = run(*command, "--questions", "4")
    assert ended.exit_code == 0, ended.stderr
    for name in ("chains in text", "direct", "thoughts: 1", "zeros in their place", "another question's"):
        assert name in ended.stdout
    report = json.loads((tmp_path / "coconut.json").read_text())
    passes = {answers["name"]: answers["passes"] for answers in report["answers"]}
    assert passes["thoughts: 1"] == 2
    assert passes["the same, direct"] == 1
    assert (tmp_path / "coconut.md").read_text() == ended.stdout
    assert (tmp_path / "coconut.png").read_bytes().startswith(b"\x89PNG")
    FrozenBase(tmp_path)  # an ordinary checkpoint
    assert "leave out --direct-share" in failure(*command, "--direct-share", "1")
    assert "fewer than the 2 numbers" in failure(*command, "--questions", "1")


def test_unknown_options_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="--hidden-size"):
        train(BaseConfig(output=tmp_path, hidden_size=64), CoconutConfig(coconut=True))
