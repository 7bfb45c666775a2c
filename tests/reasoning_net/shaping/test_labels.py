import math

import pytest
import torch

from reasoning_net.shaping import Shapings, group_advantages
from tests.reasoning_net.shaping import tokens_of

ANSWERS = [["3", "3", "4", None], ["1", "2", "5", None], ["8", "8", "8", "8"]]


def test_a_reward_without_labels_is_the_share_that_agrees() -> None:
    rewards = Shapings.named(["empo"]).rewards(ANSWERS)
    assert rewards is not None
    assert rewards[0].tolist() == [0.5, 0.5, 0.25, 0.0]
    assert rewards[2].tolist() == [1.0] * 4
    groups = group_advantages(rewards, ANSWERS, torch.ones(3, 4))
    assert groups.used.all(1).tolist() == [True, False, False]  # all different: no group; all equal: no variance
    assert bool(groups.advantages.isfinite().all())


def test_the_majority_s_answer_is_the_right_one() -> None:
    rewards = Shapings.named(["spine"]).rewards([*ANSWERS, [None, None, None, "1"]])
    assert rewards is not None
    assert rewards[[0, 2, 3]].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]


def test_a_band_holds_the_entropy_of_forks() -> None:
    spine = Shapings.named(["spine"])
    entropy = torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.0], [2.5, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    tokens = tokens_of(entropy=entropy.tolist())
    assert spine.steers_entropy
    assert spine.weights(tokens, 0.0).nonzero().tolist() == [[0, 0], [1, 0]]
    penalty = spine.penalty(entropy, tokens)
    assert float(penalty.detach()) == pytest.approx(0.05 * (0.2**2 + 1.0**2) / 10)
    penalty.backward()
    assert entropy.grad is not None
    assert entropy.grad[0, 0] < 0 < entropy.grad[1, 0]  # up where it collapses, down where it melts
    assert entropy.grad[0, 1] == 0
    inside = tokens_of(entropy=[[math.e / 3, 0.0, 0.0, 0.0, 0.0]])
    assert float(spine.penalty(inside.entropy, inside)) == 0.0
