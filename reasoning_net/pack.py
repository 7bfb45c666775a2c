"""Pack trained parts into a bundle, with the reference values for the parity check at start."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reasoning_net.bundle import Bundle, Manifest, fingerprint
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout
from reasoning_net.model import ReasoningNet
from router.policy import Thresholds
from router.probe import Probe

PARITY_LATENTS = 16


def pack(
    model: str,
    output: Path,
    layout: Layout,
    *,
    net: ReasoningNet | None = None,
    num_latent_tokens: int | None = None,
    probe: Probe | None = None,
    thresholds: Thresholds | None = None,
    parity_messages: list[dict[str, str]],
    trained_on: str = "",
    scores: dict[str, Any] | None = None,
) -> Bundle:
    """Write a bundle for `model` and load it back."""
    manifest = Manifest(
        base=fingerprint(model),
        layout=layout,
        reasoning_net=net.config if net else None,
        num_latent_tokens=num_latent_tokens if net else None,
        probe=probe.config if probe else None,
        thresholds=thresholds or Thresholds(),
        trained_on=trained_on,
        scores=scores or {},
    )
    modules = {"reasoning_net": net, "probe": probe}
    parts: dict[str, nn.Module | dict[str, Tensor]] = {name: part for name, part in modules.items() if part is not None}
    Bundle(output, manifest).save(parts)
    bundle = Bundle.load(output)
    bundle.save({"parity": parity(FrozenBase(model), bundle, parity_messages)})
    return Bundle.load(output)


@torch.no_grad()
def parity(base: FrozenBase, bundle: Bundle, messages: list[dict[str, str]]) -> dict[str, Tensor]:
    """A prompt with the hidden state and the latents that transformers computes for it, from the packed weights."""
    token_ids = base.prompt_ids(messages)
    prompt = base.read([token_ids])
    tensors = {"prompt_token_ids": torch.tensor(token_ids), "hidden_state": prompt.hidden_states[0, -1].float()}
    net = bundle.reasoning_net()
    if net is not None:
        tensors["latents"] = net(prompt.hidden_states, prompt.embeddings, prompt.mask, PARITY_LATENTS)[0]
    return tensors
