"""Train the difficulty probe on what was observed."""

import copy
import math
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from reasoning_net.stages.observe import Observations
from router.probe import Feature, Output, Probe, ProbeConfig

_TOKENS_WEIGHT = 0.2  # of the squared error of the log tokens, beside the cross-entropies


def train_probe(
    observed: Observations, features: tuple[Feature, ...], *, layers: tuple[int, ...] = (), hidden_size: int = 128,
    steps: int = 600, seed: int = 0,
) -> Probe:  # fmt: skip
    """A probe for everything that was observed, stopped where a fifth that it does not see is best, and calibrated on that."""
    torch.manual_seed(seed)
    inputs = torch.cat([observed.features[name] for name in features], dim=1).cpu()  # (n, F)
    size = observed.features["last"].shape[1] // (1 + len(layers))
    targets = cast("tuple[Output, ...]", tuple(observed.labels))
    config = ProbeConfig(
        base_hidden_size=size, hidden_size=hidden_size, features=features, layers=layers, targets=targets,
        ladder=tuple(observed.by_latents),
    )  # fmt: skip
    probe = Probe(config)
    probe.mean.copy_(inputs.mean(0))
    probe.std.copy_(inputs.std(0) + 1e-4)
    labels = _standardised(probe, observed)
    unseen, seen = torch.randperm(len(inputs)).tensor_split([len(inputs) // 5])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.1)
    best, best_loss = copy.deepcopy(probe.state_dict()), math.inf
    for _ in range(steps):
        with torch.no_grad():
            loss = float(_loss(config, probe(inputs[unseen]), labels[unseen]))
        if loss < best_loss:
            best, best_loss = copy.deepcopy(probe.state_dict()), loss
        batch = seen[torch.randint(len(seen), (512,))]
        optimizer.zero_grad()
        _loss(config, probe(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    probe.load_state_dict(best)
    scale_temperatures(probe, inputs[unseen], labels[unseen])
    return probe.eval()


def _standardised(probe: Probe, observed: Observations) -> Tensor:
    """Labels (n, A); of the tokens the logarithms, standardised as the probe will undo it."""
    labels = dict(observed.labels)
    if "tokens" in labels:
        logarithms, column = labels["tokens"].log(), list(labels).index("tokens")
        known = logarithms[~logarithms.isnan()]
        probe.shift[column], probe.scale[column] = known.mean(), known.std() + 1e-4
        labels["tokens"] = (logarithms - probe.shift[column]) / probe.scale[column]
    return torch.stack([*labels.values(), *observed.by_latents.values()], dim=1)


def _loss(config: ProbeConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum over the targets, each over the questions (B,) that it was observed on."""
    losses = []
    for target, output, label in zip(config.outputs, outputs.unbind(1), labels.unbind(1), strict=True):
        known = ~label.isnan()
        if bool(known.any()):
            is_tokens = target == "tokens"
            loss = mse_loss if is_tokens else binary_cross_entropy_with_logits
            losses.append((_TOKENS_WEIGHT if is_tokens else 1.0) * loss(output[known], label[known]))
    return torch.stack(losses).sum()


@torch.no_grad()
def scale_temperatures(probe: Probe, inputs: Tensor, labels: Tensor) -> None:
    """Temperature scaling: per mode the factor on the logits whose cross-entropy on these questions is least."""
    outputs, factors = probe(inputs), torch.logspace(-0.5, 0.5, 101)
    for column, target in enumerate(probe.config.outputs):
        known = ~labels[:, column].isnan()
        if target == "tokens" or not bool(known.any()):
            continue
        logits, label = outputs[known, column], labels[known, column]
        losses = torch.stack([binary_cross_entropy_with_logits(logits * factor, label) for factor in factors])
        probe.scale[column] = factors[losses.argmin()]


@torch.no_grad()
def predict(probe: Probe, observed: Observations) -> dict[str, Tensor]:
    """The probe's scores of every observed question, (n,) each."""
    return probe.scores(torch.cat([observed.features[name] for name in probe.config.features], dim=1))
