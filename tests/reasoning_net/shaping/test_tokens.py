import math

import pytest
import torch

from reasoning_net.shaping import Shapings, group_advantages, position_divergence
from tests.reasoning_net.shaping import tokens_of


def test_the_fifth_of_the_tokens_that_are_least_certain() -> None:
    tokens = tokens_of(entropy=[[0.1, 0.9, 0.2, 0.3, 9.0], [0.1, 0.8, 0.2, 0.3, 0.4]], written=[4, 5])
    weights = Shapings.named(["8020"]).weights(tokens, 0.5)
    assert weights.nonzero().tolist() == [[0, 1]]  # of nine tokens; the tenth is none
    assert int(Shapings.named(["8020:0.5"]).weights(tokens, 0.5).sum()) == 5  # with what ties


def test_less_of_tokens_whose_update_changes_the_entropy() -> None:
    p, entropy = 0.5, 1.0
    change = 2.0 / p * p * (1 - p) * (math.log(p) + entropy)  # A / π_old · π (1 − π)(log π + H)
    tokens = tokens_of(log_probs=[[math.log(p), 0.0]], entropy=[[entropy, 0.0]], advantages=[2.0])
    assert Shapings.named(["steer"]).weights(tokens, 0.0)[0].tolist() == pytest.approx([0.8, 1.0])
    assert Shapings.named(["steer:linear"]).weights(tokens, 0.0)[0].tolist() == pytest.approx([0.8, 1.2])
    two = tokens_of(log_probs=[[math.log(p)] * 2], entropy=[[entropy, entropy / 2]], advantages=[2.0])
    other = 2.0 * (1 - p) * (math.log(p) + entropy / 2)
    expected = math.exp(math.log(0.8) / abs(change) * abs(other))
    assert Shapings.named(["steer"]).weights(two, 0.0)[0].tolist() == pytest.approx([0.8, expected], abs=1e-5)
    # Where nothing changes much, nothing is scaled much: Ω is divided by 0.02 at least.
    still = tokens_of(log_probs=[[-1e-4]], entropy=[[1e-3]])
    assert float(Shapings.named(["steer"]).weights(still, 0.0)) > 0.999


def test_more_of_positions_at_which_a_group_differs() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    apart = position_divergence(logits.log_softmax(-1), torch.zeros(2), mask)
    mean = logits.softmax(-1).mean(0)
    ratio = mean / logits.softmax(-1)
    torch.testing.assert_close(apart[0], (ratio - 1 - ratio.log()).sum(-1).mean(0))
    assert apart[0, 0] == pytest.approx(0.0, abs=1e-6)
    tw = Shapings.named(["tw"])
    tokens = tokens_of(divergence=apart.tolist())
    assert tw.compares_positions
    assert tw.token_mean
    torch.testing.assert_close(tw.weights(tokens, 0.0), torch.tensor([[1.0, 1.4], [1.0, 1.4]]))
    # A rollout that has ended is uniform: here that is as far from its neighbour at either position.
    ended = position_divergence(logits.log_softmax(-1), torch.zeros(2), torch.tensor([[True, True], [True, False]]))
    assert 0 < ended[0, 1] < apart[0, 1]
    alone = position_divergence(logits.log_softmax(-1), torch.tensor([0, 1]), mask)
    torch.testing.assert_close(alone, torch.zeros(2, 2))


def test_hapo_s_advantages_are_means_over_tokens() -> None:
    groups = group_advantages(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), [["1", "2"]] * 2, torch.tensor([[9, 1], [5, 5]]))
    advantages = Shapings.named(["hapo"]).groups(groups, 0.0).advantages
    deviation = math.sqrt((9 * 0.1**2 + 0.9**2) / 9)
    assert advantages[0].tolist() == pytest.approx([0.1 / deviation, -0.9 / deviation], rel=1e-3)
    assert advantages[1].tolist() == pytest.approx([0.5 / math.sqrt(2.5 / 9), -0.5 / math.sqrt(2.5 / 9)], rel=1e-3)
    long = group_advantages(torch.tensor([[1.0, 0.0]]), [["1", "2"]], torch.tensor([[99, 1]]))
    assert torch.equal(Shapings.named(["hapo"]).groups(long, 0.0).advantages, long.advantages)  # an |A| of 9.9: as GRPO


def test_hapo_weighs_and_clips_by_entropy() -> None:
    hapo = Shapings.named(["hapo"])
    logs = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0]  # log H; their 0.8 quantile is 1
    entropy = [[math.exp(one) for one in logs]]
    tokens = tokens_of(entropy=entropy)
    h = [-1.0, -0.75, -0.5, -0.25, 0.0, 1.0]
    assert hapo.weights(tokens, 0.0)[0].tolist() == pytest.approx([1 + x if x <= 0 else 1.0 for x in h], abs=1e-5)
    low, high = hapo.bounds(tokens, 0.2, 0.2)
    assert low[0].tolist() == pytest.approx([0.2 * (1 - x) if x <= 0 else 0.2 for x in h], abs=1e-5)
    assert high[0].tolist() == pytest.approx([0.2 * (1 + x) if x > 0 else 0.2 for x in h], abs=1e-5)
    moved = tokens_of(entropy=entropy, log_probs=[[math.log(1.2)] * 6], old=[[0.0] * 6])  # ratios outside of 1 ± 0.1
    assert hapo.weights(moved, 0.0)[0].tolist() == pytest.approx([1.0] * 5 + [2.0])
    assert hapo.dual_clip == 10
