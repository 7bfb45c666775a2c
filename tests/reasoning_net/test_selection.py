import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.losses import losses
from reasoning_net.selection import REFUSED, least_likely, reply_filter, selected_divergence, share_of, tip_score, top_tokens
from reasoning_net.stages import sft
from reasoning_net.tasks import DemoTask, Example, TaskSpec
from tests.reasoning_net.test_losses import batch_of, layout_of, network


def test_uncertain_tokens_and_confident_wrong_ones_score_high() -> None:
    v = 16
    entropy = torch.tensor([[0.0, 0.5, 1.0, 0.0, 9.0]]) * math.log(v)
    divergence = torch.tensor([[0.0, 1.0, 0.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    # 1 − (1 − h)(1 − δ): (0, 0), (0.5, 0.25), (1, 0), (0, 1); what is no token changes no scale.
    assert tip_score(entropy, divergence, mask, v)[0, :4].tolist() == pytest.approx([0.0, 1 - 0.5 * 0.75, 1.0, 1.0])


def test_the_entropy_is_cut_at_its_98th_percentile() -> None:
    entropy = torch.cat([torch.linspace(0, 1, 99), torch.tensor([100.0])])[None]
    score = tip_score(entropy, torch.zeros(1, 100), torch.ones(1, 100, dtype=torch.bool), 10)
    assert score[0, 49] == pytest.approx(0.5 / float(entropy[0, 97]), rel=1e-4)
    assert score[0, 99] == 1


def test_the_loss_is_the_mean_over_the_selected_tokens() -> None:
    torch.manual_seed(0)
    entropy = torch.rand(2, 3)
    divergence = torch.tensor([[0.1, 5.0, 0.2], [4.0, 0.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    value = selected_divergence(divergence, torch.ones(2, 3), mask, 0.4, 7)  # all as uncertain
    assert value.shape == (2,)
    assert float(value.mean()) == pytest.approx((5.0 + 4.0) / 2)
    assert float(selected_divergence(divergence, entropy, mask, 1.0, 7).mean()) == pytest.approx(9.3 / 5)
    assert int(top_tokens(divergence, mask, 0.01).sum()) == 1


def test_a_distillation_of_half_of_the_tokens_teaches(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    net, batch = network(base), batch_of(base, "distill")
    torch.manual_seed(0)
    nll, _ = losses(net, base, layout_of(base), batch, share=0.5)
    nll.mean().backward()
    assert float(next(net.parameters()).grad.abs().sum()) > 0


@pytest.mark.parametrize(("select", "share"), [(None, None), ("tip", 0.5), ("tip:0.25", 0.25), ("tip:1", 1.0)])
def test_what_is_selected(select: str | None, share: float | None) -> None:
    assert share_of(select) == share


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        ("aslec-drop", "train traces --best-of"),
        ("rsd", "--filter-replies"),
        ("cdpo", "pairs"),
        ("mobilellm", "curriculum"),
        ("light-if", "formulas"),
        ("quiet-star", "trains the base"),
        ("tool-light", "tools"),
    ],
)
def test_what_does_not_apply_is_refused_with_its_reason(select: str, reason: str) -> None:
    with pytest.raises(StageError, match=f"{select} is not applicable to SFT: it .*{reason}"):
        share_of(select)
    assert len(REFUSED) == 7


@pytest.mark.parametrize("select", ["tip:0", "tip:2", "tip:half", "luck"])
def test_a_bad_selection_says_what_to_give(select: str) -> None:
    with pytest.raises(StageError, match="for half of the tokens"):
        share_of(select)


def asked(number: int) -> list[Example]:
    stream = DemoTask().examples(3, "train")
    return [one for one in (next(stream) for _ in range(number * 2)) if one.answer][:number]


def test_replies_that_the_base_would_not_write_are_left_out(base: FrozenBase, tmp_path: Path) -> None:
    """The demo's base reads its chains and says their result; another number it would not say."""
    examples = asked(6)
    wrong = [replace(one, reply=one.reply.replace(one.answer, str(int(one.answer) + 7))) for one in examples[:3]]
    keeps = reply_filter(base, layout_of(base), 0.01, tmp_path / "replies.json", batch_size=4)
    mixed = [*wrong, *examples[3:]]
    assert keeps(mixed) == [False] * 3 + [True] * 3
    assert keeps(mixed) == keeps(mixed)  # from the file
    assert keeps(examples) == [True] * 6  # which is of other replies
    torch.testing.assert_close(
        torch.tensor(least_likely(base, layout_of(base), examples[:1])),
        torch.tensor(least_likely(base, layout_of(base), examples)[:1]), rtol=1e-3, atol=1e-4,
    )  # fmt: skip
    with pytest.raises(StageError, match="Record chains"):
        keeps([replace(examples[0], chain="")])


def test_filtered_replies_are_not_trained_on(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"question": e.messages[-1]["content"], "answer": e.answer, "reply": e.reply, "r": e.chain} for e in asked(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TaskSpec(str(tmp_path / "rows.jsonl"), columns="reply=reply,chain=r", whole=True)
    config = sft.SftConfig(
        model=str(tiny_base), output=tmp_path / "out", task=spec, steps=1, batch_size=4, num_latents=2, max_latents=2,
        hidden_size=32, num_layers=1, filter_replies=1e-6,
    )  # fmt: skip
    sft.main(config)
    assert len(json.loads((tmp_path / "out" / "replies.json").read_text())["least"]) == 12
    with pytest.raises(StageError, match="None of the 12 rows"):
        sft.main(replace(config, output=tmp_path / "none", filter_replies=0.999))
    with pytest.raises(StageError, match="replies of a data set"):
        sft.main(replace(config, output=tmp_path / "demo", task=TaskSpec()))
    with pytest.raises(StageError, match="--distill-share"):
        sft.main(replace(config, output=tmp_path / "select", select="tip:0.5"))
