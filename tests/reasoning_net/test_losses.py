from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.batches import Batch, Batches, Kind, Plan
from reasoning_net.config import ReasoningNetConfig
from reasoning_net.curriculum import Curriculum
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.losses import hint_loss, losses
from reasoning_net.model import ReasoningNet
from reasoning_net.tasks import DemoTask
from tests.reasoning_net.test_batches import PLAN


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> FrozenBase:
    return FrozenBase(tiny_base)


def layout_of(base: FrozenBase) -> LayoutIds:
    return base.layout().token_ids(base.tokenizer)


def network(base: FrozenBase, *, second_round: bool = False) -> ReasoningNet:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    config = ReasoningNetConfig(base_hidden_size=base.hidden_size, num_latent_tokens=8, second_round=second_round, **sizes)
    return ReasoningNet(config)


def batch_of(base: FrozenBase, kind: Kind = "reply", plan: Plan = PLAN) -> Batch:
    shares = {"rest_share": float(kind == "rest"), "distill_share": float(kind == "distill")}
    stream = Batches(
        DemoTask(), base.tokenizer, layout_of(base), Curriculum(8, 2, 0.5), replace(plan, **shares), seed="0", first=0
    )
    return next(iter(stream))


def test_hints_are_read_off_the_latents(base: FrozenBase) -> None:
    ids = [base.tokenizer.encode(text, add_special_tokens=False) for text in (" 7", " -", " 3", " 4")]
    assert all(len(one) == 1 for one in ids)
    hints = torch.tensor([[one[0] for one in ids]])
    right = base.embed(hints)
    padded = torch.cat([right, torch.randn(1, 3, base.hidden_size)], dim=1)  # what follows the last hint is free
    assert float(hint_loss(base, padded, hints)) < float(hint_loss(base, padded.flip(1), hints))
    assert float(hint_loss(base, padded, torch.full_like(hints, -100))) == 0.0
    assert float(hint_loss(base, padded, hints[:, :2])) > 0.0


def test_a_question_answered_from_fewer_latents_sees_no_others(base: FrozenBase) -> None:
    """Rows with different numbers of latents in one batch, as if each had been a batch of its own."""
    net, batch = network(base), batch_of(base)
    few = batch._replace(num_latents=torch.full_like(batch.num_latents, 2))
    alone = few._replace(computed=2, hints=batch.hints[:, :2])
    together, _ = losses(net, base, layout_of(base), few)
    torch.testing.assert_close(together, losses(net, base, layout_of(base), alone)[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, losses(net, base, layout_of(base), batch)[0], rtol=1e-4)


def test_padding_changes_nothing(base: FrozenBase) -> None:
    """What a GPU's graphs need."""
    net = network(base)
    padded = batch_of(base, plan=replace(PLAN, pad_to=64))
    assert padded.prompt_ids.shape[1] % 64 == 0
    torch.testing.assert_close(
        losses(net, base, layout_of(base), padded), losses(net, base, layout_of(base), batch_of(base)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["reply", "rest", "distill"])
@pytest.mark.parametrize("second_round", [False, True])
def test_every_kind_teaches_the_network_and_only_the_network(base: FrozenBase, kind: Kind, *, second_round: bool) -> None:
    net = network(base, second_round=second_round)
    torch.manual_seed(0)
    nll, _ = losses(net, base, layout_of(base), batch_of(base, kind), second_round=second_round)
    nll.mean().backward()
    assert nll.shape == (4,)
    assert bool((nll > 0).all())
    parameters = dict(net.named_parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters.values())
    assert float(parameters["queries"].grad.abs().sum()) > 0
    assert all(p.grad is None for p in base.model.parameters())


@torch.no_grad()
def test_a_chain_is_read_the_same_beside_a_longer_one(base: FrozenBase) -> None:
    """The last token of each chain predicts the first of its reply."""
    batch, replies = batch_of(base, "distill"), torch.tensor([[5, 6]] * 4)
    prompt = base.read_ids(batch.prompt_ids, batch.mask)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        chain = batch.chain[rows]
        chain = chain[:, (chain != -100).any(0)]
        return base.answer_logits(prompt.rows(rows), base.embed(chain.clamp(min=0)), replies[rows], chain != -100)

    together = logits(torch.arange(4))
    for row in range(4):
        torch.testing.assert_close(together[row : row + 1], logits(torch.tensor([row])), rtol=1e-3, atol=1e-4)


def test_the_base_itself_diverges_from_nothing(base: FrozenBase) -> None:
    """Where the latents are the chain's own embeddings, nothing is left to distil."""
    batch, layout = batch_of(base, "distill", replace(PLAN, batch_size=1)), layout_of(base)
    chain = batch.chain[:, len(layout.before_latents) : -len(layout.after_latents)]
    latents = base.embed(chain)
    batch = batch._replace(computed=chain.shape[1], num_latents=torch.tensor([chain.shape[1]]))
    divergence, _ = losses(lambda *_: latents, base, layout, batch)
    assert float(divergence) == pytest.approx(0.0, abs=1e-3)
