import pytest
import torch

from reasoning_net.latent_noise import drawn, log_density


def test_noise_is_relative_to_each_question_s_latents_and_a_function_of_the_seed() -> None:
    latents = torch.stack([torch.full((64, 32), 0.5), torch.full((64, 32), 4.0)])
    noise, sigma = drawn(latents, 0.33, 8, seed=1)
    assert noise.shape == (2, 8, 64, 32)
    assert sigma.tolist() == pytest.approx([0.165, 1.32])
    assert noise.std((1, 2, 3)).tolist() == pytest.approx(sigma.tolist(), rel=0.02)
    assert not torch.equal(noise[0, 0], noise[0, 1])
    assert torch.equal(noise, drawn(latents, 0.33, 8, seed=1)[0])
    assert not torch.equal(noise, drawn(latents, 0.33, 8, seed=2)[0])


def test_a_rewarded_noise_pulls_the_latents_towards_it() -> None:
    latents = torch.zeros(1, 2, 3, requires_grad=True)
    noise, sigma = torch.full((1, 2, 3), 0.1), torch.tensor([0.5])
    value = log_density(latents, noise, sigma)
    assert value.item() == pytest.approx(-6 * 0.01 / (2 * 0.25))
    value.sum().backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, noise / 0.25)  # d/dz of −‖z′ − z‖² / 2σ², with z′ fixed: ε / σ
