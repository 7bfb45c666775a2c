"""The difficulty probe: from the hidden states of the question to P(correct) in each mode.

A two-layer ReLU MLP, as in DiffAdapt (ICLR 2026); a linear head loses three points there. It reads
the same states that feed the reasoning network, in the same engine step.

Shapes: B batch, T prompt tokens, N latent tokens, d hidden size of the base, F features, A answers' modes (targets).
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Feature = Literal["last", "mean", "latents"]


class ProbeConfig(BaseModel):
    """`last`: the state at the last prompt position; `mean`: over all positions; `latents`: over the first 16 latents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden_size: int = Field(gt=0)
    hidden_size: int = Field(128, gt=0)
    features: tuple[Feature, ...] = ("last", "mean")
    targets: tuple[Literal["direct", "latent", "explicit"], ...] = ("direct", "latent", "explicit")


class Probe(nn.Module):
    """P(correct | mode) for each target."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        size = config.base_hidden_size * len(config.features)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.layers = nn.Sequential(
            nn.Linear(size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, len(config.targets))
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, A) from features (B, F)."""
        return self.layers((features - self.mean) / self.std)

    def features(self, hidden_states: Tensor, mask: Tensor, latents: Tensor | None) -> Tensor:
        """Features (B, F) from H_X (B, T, d) padded on the left, its mask (B, T), and z (B, N, d) where there is a network."""
        parts: dict[str, Tensor] = {"last": hidden_states[:, -1]}
        if "mean" in self.config.features:
            weights = mask[..., None].to(hidden_states.dtype)
            parts["mean"] = (hidden_states * weights).sum(1) / weights.sum(1)
        if "latents" in self.config.features:
            assert latents is not None, "a probe that reads latents is served with its reasoning network"
            parts["latents"] = latents[:, :16].mean(1)
        return torch.cat([parts[name] for name in self.config.features], dim=-1)
