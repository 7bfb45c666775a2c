"""The difficulty probe: from the hidden states of the question to P(correct) in each mode, and to the length of the chain.

A two-layer ReLU MLP, as in DiffAdapt (ICLR 2026), or linear heads, which lose three points there. It reads the same
states that feed the reasoning network, in the same engine step; those of earlier layers may join them.

Shapes: B batch, T prompt tokens, N latent tokens, d hidden size of the base, F features, A targets, L earlier layers.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from router.probe_config import CLASSES, Feature, Output, ProbeConfig
from router.user_probe import ProbeFile

__all__ = ["Feature", "Output", "Probe", "ProbeConfig", "UserProbe", "read_features"]


class Probe(nn.Module):
    """One output per target, and per rung of the ladder."""

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        size, targets = config.base_hidden_size * len(config.features), len(config.outputs)
        self.register_buffer("mean", torch.zeros(sum(config.sizes())))
        self.register_buffer("std", torch.ones(sum(config.sizes())))
        if config.layers:
            self.mix = nn.Parameter(torch.zeros(1 + len(config.layers)))
        # Of the outputs: 1 / temperature of a calibrated probability; what standardised the logarithm of the tokens.
        self.register_buffer("scale", torch.ones(targets))
        self.register_buffer("shift", torch.zeros(targets))
        if config.hidden_size:
            hidden = config.hidden_size
            self.layers = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, targets))
        else:
            self.layers = nn.Sequential(nn.Linear(size, targets))
        if config.classes:
            first = nn.Linear(config.base_hidden_size, config.hidden_size)
            self.classifier = nn.Sequential(first, nn.ReLU(), nn.Linear(config.hidden_size, len(CLASSES)))

    def forward(self, features: Tensor) -> Tensor:
        """Raw outputs (B, A) from features (B, F): logits, and the standardised logarithm of the tokens."""
        inputs = (features - self.mean) / self.std
        if self.config.layers:
            parts = zip(self.config.features, inputs.split(self.config.sizes(), dim=1), strict=True)
            inputs = torch.cat([part if name == "latents" else self._mixed(part) for name, part in parts], dim=1)
        return self.layers(inputs)

    def _mixed(self, states: Tensor) -> Tensor:
        """The states of all layers (B, (1 + L) · d) as one, (B, d)."""
        return torch.einsum("bld,l->bd", states.unflatten(1, (len(self.mix), -1)), self.mix.softmax(0))

    def classify(self, features: Tensor) -> Tensor:
        """Logits of DiffAdapt's classes (B, 3) from features (B, F)."""
        of_last = self.config.last_state
        return self.classifier((features[:, of_last] - self.mean[of_last]) / self.std[of_last])

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Per output (B,): calibrated P(correct), expected tokens; with `classes` the P of each, too."""
        outputs = self(features) * self.scale + self.shift
        columns = zip(self.config.outputs, outputs.unbind(1), strict=True)
        scores = {target: column.exp() if target == "tokens" else column.sigmoid() for target, column in columns}
        if self.config.classes:
            scores |= zip(CLASSES, self.classify(features).softmax(-1).unbind(1), strict=True)
        return scores

    def features(self, hidden_states: Tensor, mask: Tensor, latents: Tensor | None) -> Tensor:
        """Features (B, F) from the final states and those of the config's layers (B, 1 + L, T, d), padded on the left, their
        mask (B, T), and z (B, N, d) where there is a network."""
        return read_features(self.config.features, hidden_states, mask, latents)


class UserProbe(nn.Module):
    """Of a file: linear, or an MLP with one hidden layer."""

    def __init__(self, file: ProbeFile) -> None:
        super().__init__()
        self.file = file
        first, *rest = (nn.Linear(*sizes) for sizes in pairwise(file.sizes))
        self.layers = nn.Sequential(first, nn.ReLU(), *rest) if rest else first
        self.layers.load_state_dict({name: tensor.float() for name, tensor in load_file(file.path).items()})

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, A) from features (B, F)."""
        outputs = self.layers(features)
        return outputs.sigmoid() if self.file.config.activation == "sigmoid" else outputs


def read_features(names: Sequence[Feature], hidden_states: Tensor, mask: Tensor, latents: Tensor | None) -> Tensor:
    """(B, F), side by side, from states (B, 1 + L, T, d), padded on the left, their mask (B, T), and z (B, N, d)."""
    parts: dict[str, Tensor] = {"last": hidden_states[:, :, -1].flatten(1)}
    if "mean" in names:
        weights = mask[:, None, :, None].to(hidden_states.dtype)
        parts["mean"] = ((hidden_states * weights).sum(2) / weights.sum(2)).flatten(1)
    if "latents" in names:
        assert latents is not None, "a probe that reads latents is served with its reasoning network"
        parts["latents"] = latents[:, :16].mean(1)
    return torch.cat([parts[name] for name in names], dim=-1)
