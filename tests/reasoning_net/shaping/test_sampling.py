import math

import pytest
import torch

from reasoning_net.shaping import Groups, Shapings, group_advantages
from reasoning_net.shaping.sampling import most_varied
from tests.reasoning_net.shaping import tokens_of

ANSWERS = [["3", "3", "4", "3"], ["1", "2", "5", "7"], ["8", "8", "8", "8"]]
REWARDS = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def groups_of(rewards: torch.Tensor = REWARDS) -> Groups:
    return group_advantages(rewards, ANSWERS, torch.full(rewards.shape, 6))


def test_advantages_are_normalised_and_groups_without_variance_unused() -> None:
    groups = groups_of()
    torch.testing.assert_close(groups.advantages.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(groups.advantages[:2].std(1), torch.ones(2), atol=1e-3, rtol=0)
    assert groups.used.all(1).tolist() == [True, True, False]


@pytest.mark.parametrize(("name", "alpha"), [("seed", 1.0), ("seed:0.5", 0.5)])
def test_semantic_entropy_shrinks_the_advantages_of_uncertain_groups(name: str, alpha: float) -> None:
    scale = (Shapings.named([name]).groups(groups_of(), 0.0).advantages / groups_of().advantages)[:2, 0].tolist()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert scale == pytest.approx([1 - alpha * entropy, 1 - alpha], abs=1e-6)  # four different answers: the greatest entropy


def test_the_subset_that_varies_most_is_found_in_one_pass() -> None:
    torch.manual_seed(0)
    values = torch.randn(9)
    for size in range(2, 9):
        every = [values[list(one)].var() for one in torch.combinations(torch.arange(9), size).tolist()]
        assert float(values[most_varied(values, size)].var()) == pytest.approx(float(max(every)), rel=1e-5)
    assert sorted(most_varied(values, 20).tolist()) == list(range(9))


def test_down_sampling_goes_by_group_then_across_the_batch_and_opens_with_the_run() -> None:
    d3s = Shapings.named(["d3s"])
    first = d3s.groups(groups_of(), 0.0)
    # Half of each group leaves the rare rollout and one of the others; half of those, the two that are farthest apart.
    assert first.used.sum() == 2
    assert first.used[0, 2]
    assert first.used[1, 0]
    assert torch.equal(first.advantages, groups_of().advantages)  # not normalised again
    assert torch.equal(d3s.groups(groups_of(), 1.0).used, groups_of().used)


def test_down_sampling_keeps_the_tokens_of_the_greatest_advantage_times_entropy() -> None:
    tokens = tokens_of(entropy=[[1.0, 2.0, 0.0, 0.0, 0.0], [1.5, 0.1, 0.1, 0.1, 0.1]], advantages=[1.0, -2.0])
    weights = Shapings.named(["d3s"]).weights(tokens, 0.0)
    assert weights.nonzero().tolist() == [[0, 1], [1, 0]]  # a fifth: |A| · H of 2 and 3
    assert torch.equal(Shapings.named(["d3s"]).weights(tokens, 1.0), tokens.mask.float())


def test_less_of_replies_that_were_unlikely() -> None:
    tokens = tokens_of(log_probs=[[-1.0, -1.0], [-3.0, -3.0]])
    weights = Shapings.named(["ppl:0.1"]).weights(tokens, 0.0)[:, 0].tolist()
    assert weights == pytest.approx([1 + 0.1 / math.sqrt(2), 1 - 0.1 / math.sqrt(2)])  # standardised: ∓ 1/√2
    assert Shapings.named(["ppl"]).weights(tokens, 0.0)[1, 0] == pytest.approx(1 - 0.01 / math.sqrt(2))
