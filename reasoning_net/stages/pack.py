"""Pack a base's layout and, where there is one, its reasoning network into a bundle, with reference values for parity checks.

    latentserve bundle --model runs/base --net runs/sft --output runs/bundle

`latentserve router fit` adds a probe. Each part is optional: a bundle without a network still routes.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from reasoning_net.bundle import Bundle, Manifest, fingerprint
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout
from reasoning_net.model import ReasoningNet

PARITY_LATENTS = 16
_PARITY_MESSAGES = [{"role": "user", "content": "Tom has 7 pens. In January, he buys 2 pens. How many pens does Tom have now?"}]


def pack(
    model: str, output: Path, layout: Layout, *, net: ReasoningNet | None = None, num_latent_tokens: int | None = None,
    reasoning_parser: str = "qwen3", trained_on: str = "",
) -> Bundle:  # fmt: skip
    """Write a bundle for `model` and load it back."""
    manifest = Manifest(
        base=fingerprint(model),
        layout=layout,
        reasoning_parser=reasoning_parser,
        reasoning_net=net.config if net else None,
        num_latent_tokens=num_latent_tokens if net else None,
        trained_on=trained_on,
    )
    parts: dict[str, nn.Module | dict[str, Tensor]] = {"reasoning_net": net} if net else {}
    Bundle(output, manifest).save(parts)
    bundle = Bundle.load(output)
    bundle.save({"parity": parity(FrozenBase(model), bundle)})
    return Bundle.load(output)


@torch.no_grad()
def parity(base: FrozenBase, bundle: Bundle) -> dict[str, Tensor]:
    """A prompt with the hidden state and the latents that transformers computes for it, from the packed weights."""
    token_ids = base.prompt_ids(_PARITY_MESSAGES)
    prompt = base.read([token_ids])
    tensors = {"prompt_token_ids": torch.tensor(token_ids), "hidden_state": prompt.hidden_states[0, -1].float()}
    net = bundle.reasoning_net()
    if net is not None:
        tensors["latents"] = net(prompt.hidden_states, prompt.embeddings, prompt.mask, PARITY_LATENTS)[0]
    return tensors
