"""Noisy latents: rollouts of one question that differ in what was thought, and not only in how it was said.

z′ = z + σ · ε with σ = s · rms(z) of each question. The gradient goes through z′ into φ; as a policy over latents, z′ also has
a density. Serving has no noise: trained soft, deployed hard (Soft Tokens; its scale of ⅓ is per norm of a vector).
Shapes: Q questions, K rollouts of each, N latents, d hidden size of the base.
"""

import torch
from torch import Tensor


def drawn(latents: Tensor, scale: float, copies: int, seed: int) -> tuple[Tensor, Tensor]:
    """The noise σ · ε, (Q, K, N, d), and σ, (Q,), for latents (Q, N, d)."""
    latents = latents.detach().float()
    sigma = scale * latents.square().mean((1, 2)).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(latents), copies, *latents.shape[1:], generator=generator).to(latents.device)
    return noise * sigma[:, None, None, None], sigma


def log_density(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """log p(z′ | z), (R,), up to a constant, of z′ = z + noise as it was drawn: z′ is held fixed. latents, noise: (R, N, d)."""
    fixed = latents.detach() + noise
    return -(fixed - latents).square().sum((1, 2)) / (2 * sigma.square())
