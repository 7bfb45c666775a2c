import math
from dataclasses import replace

import pytest
import torch

from reasoning_net.policy import Objective, Seen
from reasoning_net.shaping import Shapings, Tokens
from tests.reasoning_net.shaping import tokens_of

CLIPPED = Objective(clip=0.2)


def loss_of(objective: Objective, log_probs: torch.Tensor, tokens: Tokens, reference: torch.Tensor | None = None):
    seen = Seen(log_probs, tokens.entropy)
    reference = log_probs.detach() if reference is None else reference
    return objective.loss(seen, reference, tokens, objective.shaped(tokens, 0.0))


def test_the_loss_is_the_clipped_policy_gradient() -> None:
    log_probs = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 9.0]], requires_grad=True)
    tokens = tokens_of(log_probs=log_probs.tolist(), old=[[0.0] * 3] * 2, advantages=[1.0, -1.0], written=[3, 2])
    loss, kl, clipped = loss_of(CLIPPED, log_probs, tokens)
    # Reply 1: min(e^0.5, 1.2) + 1 + 1 over 3; reply 2: −max(e^−0.5, 0.8) − 1 over 2.
    assert loss.item() == pytest.approx(-((1.2 + 2) / 3 - (0.8 + 1) / 2) / 2)
    assert kl == 0.0
    assert clipped == pytest.approx(2 / 5)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0, 0] == 0  # clipped: no push beyond the bound
    assert log_probs.grad[1, 2] == 0  # not a token
    assert log_probs.grad[0, 1] < 0 < log_probs.grad[1, 1]


def test_clip_higher_and_kl() -> None:
    quarter, zeros = torch.full((1, 1), 0.25), torch.zeros(1, 1)
    tokens = tokens_of(log_probs=[[0.25]], old=[[0.0]])
    clipped, unclipped = (loss_of(replace(CLIPPED, clip_high=high), quarter, tokens)[2] for high in (None, 0.3))
    assert (clipped, unclipped) == (1.0, 0.0)
    tokens = tokens_of(log_probs=[[0.25]])
    plain, _, _ = loss_of(CLIPPED, quarter, tokens, zeros)
    held, kl, _ = loss_of(replace(CLIPPED, kl_weight=0.5), quarter, tokens, zeros)
    assert kl > 0
    assert float(held) == pytest.approx(float(plain) + 0.5 * kl)


def test_shapings_act_on_the_gain_and_not_on_the_kl() -> None:
    tokens = tokens_of(log_probs=[[0.0] * 5], entropy=[[0.0, 0.0, 1.0, 0.0, 0.0]])
    log_probs = torch.zeros(1, 5, requires_grad=True)
    objective = replace(CLIPPED, shapings=Shapings.named(["8020"]), kl_weight=0.5)
    loss, _, _ = loss_of(objective, log_probs, tokens, torch.full((1, 5), 0.1))
    loss.backward()
    pulled = -0.5 * (math.exp(0.1) - 1) / 5  # towards the reference, everywhere
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([pulled, pulled, pulled - 1 / 5, pulled, pulled])


def test_a_mean_over_tokens_gives_long_replies_their_weight() -> None:
    tokens = tokens_of(log_probs=[[0.0] * 4] * 2, advantages=[1.0, -1.0], divergence=[[0.0] * 4] * 2, written=[4, 1])
    log_probs = torch.zeros(2, 4)
    assert float(loss_of(CLIPPED, log_probs, tokens)[0]) == pytest.approx(0.0)
    by_token = replace(CLIPPED, shapings=Shapings.named(["tw"]))
    assert float(loss_of(by_token, log_probs, tokens)[0]) == pytest.approx(-(4 - 1) / 5)


def test_a_second_clip_bounds_what_a_bad_token_can_cost() -> None:
    """A token that has become e⁵ times as likely, and should not have."""
    tokens = tokens_of(log_probs=[[5.0]], old=[[0.0]], entropy=[[1.0]], advantages=[-1.0])
    log_probs = torch.full((1, 1), 5.0)
    assert float(loss_of(CLIPPED, log_probs, tokens)[0]) == pytest.approx(math.exp(5), rel=1e-4)
    assert float(loss_of(replace(CLIPPED, shapings=Shapings.named(["hapo"])), log_probs, tokens)[0]) == pytest.approx(10.0)


def test_what_the_network_makes_of_replies() -> None:
    logits = torch.zeros(2, 2, 8)
    logits[1, 0, 3] = 100.0
    ids = torch.tensor([[1, 2], [3, -100]])
    seen = Seen.of(logits, ids, torch.tensor([0, 0]), Shapings())
    assert seen.log_probs.tolist() == [pytest.approx([-math.log(8)] * 2), pytest.approx([0.0, 0.0])]
    assert seen.entropy[:, 0].tolist() == pytest.approx([math.log(8), 0.0])
    assert seen.entropy[1, 1] == 0
    assert seen.divergence is None
    parts = [Seen(seen.log_probs[i : i + 1], seen.entropy[i : i + 1]) for i in (1, 0)]
    rows = [torch.tensor([False, True]), torch.tensor([True, False])]
    assert torch.equal(Seen.joined(parts, rows).log_probs, seen.log_probs)


@pytest.mark.parametrize("name", ["spine", "8020"])
def test_entropy_has_gradients_where_it_is_steered(name: str) -> None:
    logits = torch.randn(1, 2, 5, requires_grad=True)
    seen = Seen.of(logits, torch.tensor([[1, 2]]), torch.tensor([0]), Shapings.named([name]))
    assert seen.log_probs.requires_grad
    assert seen.entropy.requires_grad == (name == "spine")
