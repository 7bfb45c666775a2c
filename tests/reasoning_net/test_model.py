import itertools

import pytest
import torch

from reasoning_net.config import ReasoningNetConfig
from reasoning_net.model import ReasoningNet


def network(conditioner: str, num_rounds: int = 1, max_prompt_tokens: int | None = None) -> ReasoningNet:
    torch.manual_seed(0)
    config = ReasoningNetConfig(
        base_hidden_size=24, num_latent_tokens=32, num_rounds=num_rounds, conditioner=conditioner, hidden_size=32,
        max_prompt_tokens=max_prompt_tokens,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    return ReasoningNet(config, embedding_rms=0.7).eval()


@pytest.mark.parametrize("conditioner", ["last", "all", "all+embeddings"])
@torch.no_grad()
def test_fewer_latents_are_a_prefix_of_more(conditioner: str) -> None:
    net = network(conditioner)
    states, mask = torch.randn(3, 9, 24), torch.ones(3, 9, dtype=torch.bool)
    full = net(states, states.flip(1), mask)
    assert full.shape == (3, 32, 24)
    for n in (1, 8, 31):
        torch.testing.assert_close(net(states, states.flip(1), mask, n), full[:, :n])


@pytest.mark.parametrize("conditioner", ["last", "all", "all+embeddings"])
@torch.no_grad()
def test_padding_changes_nothing(conditioner: str) -> None:
    net = network(conditioner)
    states = torch.randn(1, 5, 24)
    padded = torch.cat([torch.randn(1, 7, 24) * 100, states], dim=1)
    mask = torch.arange(12)[None] >= 7
    torch.testing.assert_close(net(padded, padded, mask), net(states, states, torch.ones(1, 5, dtype=torch.bool)))


@torch.no_grad()
def test_conditioners_read_what_they_say() -> None:
    states, mask = torch.randn(1, 6, 24), torch.ones(1, 6, dtype=torch.bool)
    changed = states.clone()
    changed[:, 0] += 1
    last, everything = network("last"), network("all")
    torch.testing.assert_close(last(changed, states, mask), last(states, states, mask))
    assert not torch.allclose(everything(changed, states, mask), everything(states, states, mask))
    torch.testing.assert_close(everything(states, changed, mask), everything(states, states, mask))
    both = network("all+embeddings")
    assert not torch.allclose(both(states, changed, mask), both(states, states, mask))


@pytest.mark.parametrize("conditioner", ["all", "all+embeddings"])
@torch.no_grad()
def test_a_bounded_network_reads_the_end(conditioner: str) -> None:
    net = network(conditioner, max_prompt_tokens=5)
    states, mask = torch.randn(2, 9, 24), torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(net(states, states, mask), net(states[:, -5:], states[:, -5:], mask[:, -5:]))


@pytest.mark.parametrize("conditioner", ["last", "all", "all+embeddings"])
@torch.no_grad()
def test_rounds_change_the_latents_and_keep_what_holds_for_one(conditioner: str) -> None:
    net = network(conditioner, num_rounds=3)
    states, mask = torch.randn(2, 9, 24), torch.ones(2, 9, dtype=torch.bool)
    by_rounds = [net(states, states, mask, 8, rounds) for rounds in (1, 2, 3)]
    torch.testing.assert_close(net(states, states, mask, 8), by_rounds[2])
    assert all(not torch.allclose(one, other) for one, other in itertools.pairwise(by_rounds))
    torch.testing.assert_close(net(states, states, mask, 3, 2), by_rounds[1][:, :3])
    padded = torch.cat([torch.randn(2, 4, 24) * 100, states], dim=1)
    torch.testing.assert_close(net(padded, padded, torch.arange(13).expand(2, -1) >= 4, 8), by_rounds[2])
    single = network(conditioner)
    single.load_state_dict({name: tensor for name, tensor in net.state_dict().items() if name != "rounds"})
    torch.testing.assert_close(single(states, states, mask, 8), by_rounds[0])


@torch.no_grad()
def test_latents_have_the_scale_of_the_embeddings() -> None:
    z = network("all")(torch.randn(2, 6, 24) * 50, torch.zeros(2, 6, 24), torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(z.pow(2).mean(-1).sqrt(), torch.full((2, 32), 0.7), rtol=1e-3, atol=1e-3)
