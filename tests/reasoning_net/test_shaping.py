import pytest
import torch

from reasoning_net.shaping import down_sample, group_advantages, seed_grpo

ANSWERS = [["3", "3", "4", "3"], ["1", "2", "5", "7"], ["8", "8", "8", "8"]]
REWARDS = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_advantages_are_normalised_and_groups_without_variance_unused() -> None:
    groups = group_advantages(REWARDS, ANSWERS)
    torch.testing.assert_close(groups.advantages.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(groups.advantages[:2].std(1), torch.ones(2), atol=1e-3, rtol=0)
    assert groups.used.all(1).tolist() == [True, True, False]


def test_semantic_entropy_shrinks_the_advantages_of_uncertain_groups() -> None:
    groups = group_advantages(REWARDS, ANSWERS)
    scale = (seed_grpo(groups).advantages / groups.advantages)[:2, 0].tolist()
    assert scale[1] == pytest.approx(0.0, abs=1e-6)  # four different answers: the greatest entropy
    assert 0.5 < scale[0] < 0.7  # 1 − H(3/4, 1/4) / log 4


def test_down_sampling_keeps_the_rollouts_that_differ_most() -> None:
    groups = down_sample(group_advantages(REWARDS, ANSWERS))
    assert groups.used.sum(1).tolist() == [2, 2, 0]
    assert groups.used[0, 2]
    assert groups.used[1, 0]
