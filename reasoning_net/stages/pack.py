"""Pack a base's layout and, where there is one, its reasoning network into a bundle, with reference values for parity checks.

    latentserve bundle --model runs/base --net runs/sft --output runs/bundle

`latentserve router fit` adds a probe. Each part is optional: a bundle without a network still routes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from reasoning_net.bundle import Bundle, Manifest, fingerprint
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout
from reasoning_net.model import ReasoningNet
from reasoning_net.options import LayoutFile, Model, ThinkingPrompt
from reasoning_net.stages.sft import load_net, read_trained_on
from reasoning_net.tokenizer_check import warning

logger = logging.getLogger(__name__)
PARITY_LATENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    output: Path
    """Where the bundle goes."""
    model: Model = str(DEMO_MODEL)
    net: Path | None = None
    """Output of `train sft` or `train grpo`; without it a bundle for routing alone."""
    num_latent_tokens: PositiveInt = 16
    """Latents per question in serving."""
    max_prompt_tokens: PositiveInt | None = None
    """Of a longer prompt the network reads as many positions at its end: what a long conversation costs is bounded."""
    thinks_on: bool = False
    """The network was trained for thinking that goes on in text (`train sft --rest-share`): offer latent+explicit."""
    layout: LayoutFile = None
    thinking_prompt: ThinkingPrompt = None
    reasoning_parser: str = "qwen3"
    """vLLM's reasoning parser for the base."""
    trained_on: str | None = None
    """For whoever reads bundle.json; by default the names of the data that the network was trained on."""


def main(config: PackConfig) -> Bundle:
    """Pack what the files say."""
    net, layout = load_net(config.net) if config.net else (None, FrozenBase(config.model).layout(config.layout))
    layout = layout.prompted(config.thinking_prompt)
    if net is not None:
        layout.check_latents()
        net.config = net.config.model_copy(update={"max_prompt_tokens": config.max_prompt_tokens})
    named = read_trained_on(config.net) if config.net and config.trained_on is None else config.trained_on
    return pack(
        config.model, config.output, layout, net=net, num_latent_tokens=config.num_latent_tokens,
        reasoning_parser=config.reasoning_parser, trained_on=named or "", thinks_on=config.thinks_on,
    )  # fmt: skip


_PARITY_MESSAGES = [{"role": "user", "content": "Tom has 7 pens. In January, he buys 2 pens. How many pens does Tom have now?"}]


def pack(
    model: str, output: Path, layout: Layout, *, net: ReasoningNet | None = None, num_latent_tokens: int | None = None,
    reasoning_parser: str = "qwen3", trained_on: str = "", thinks_on: bool = False,
) -> Bundle:  # fmt: skip
    """Write a bundle for `model` and load it back."""
    manifest = Manifest(
        base=fingerprint(model),
        layout=layout,
        reasoning_parser=reasoning_parser,
        reasoning_net=net.config if net else None,
        num_latent_tokens=num_latent_tokens if net else None,
        thinks_on=thinks_on and net is not None,
        trained_on=trained_on,
    )
    parts: dict[str, nn.Module | dict[str, Tensor]] = {"reasoning_net": net} if net else {}
    Bundle(output, manifest).save(parts)
    bundle, base = Bundle.load(output), FrozenBase(model)
    bundle.save({"parity": parity(base, bundle)})
    if said := warning(base.tokenizer, layout, has_latents=net is not None):
        logger.warning(said)
    return Bundle.load(output)


@torch.no_grad()
def parity(base: FrozenBase, bundle: Bundle) -> dict[str, Tensor]:
    """A prompt with the hidden state and the latents that transformers computes for it, from the packed weights."""
    token_ids = base.prompt_ids(_PARITY_MESSAGES)
    prompt = base.read([token_ids])
    tensors = {"prompt_token_ids": torch.tensor(token_ids), "hidden_state": prompt.hidden_states[0, -1].float()}
    net = bundle.reasoning_net()
    if net is not None:
        tensors["latents"] = net(
            prompt.hidden_states, prompt.embeddings, prompt.mask, min(PARITY_LATENTS, net.config.num_latent_tokens)
        )[0]
    return tensors
