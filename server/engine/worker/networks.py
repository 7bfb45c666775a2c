"""The reasoning network and the probe of a bundle, and probes of an operator's own, on the worker's device.

They are there before vLLM measures how much memory is left for its KV cache, and are rehearsed while it measures: what they
take is part of its plan.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from vllm.config import VllmConfig

from reasoning_net.bundle import Bundle
from reasoning_net.model import ReasoningNet
from reasoning_net.precision import compute_dtype
from router.probe import Probe, UserProbe
from router.user_probe import ProbeFile, average, read_probes

MAX_PADDED_TOKENS, _ON_CPU = 8192, 1024
"""Of a micro-batch: prompts × the longest of them. A prompt that is longer is read alone. On a CPU what fits its caches is
faster: eight of 100 tokens take 9.1 ms each, 64 at once 17.8."""
_BUNDLE, _PROBES = "latentserve_bundle", "latentserve_probes"  # in vLLM's `additional_config`: a directory, and files


def with_networks(config: VllmConfig, bundle: Bundle | None, probes: Sequence[ProbeFile] = ()) -> None:
    """Tell the worker which bundle, and which probes of the operator's own, it loads."""
    given = {_BUNDLE: str(bundle.directory) if bundle else None, _PROBES: [str(probe.path) for probe in probes]}
    config.additional_config = {**config.additional_config, **given}


class Networks:
    """All None, or empty, without a bundle."""

    def __init__(self, config: VllmConfig, device: torch.device, base_dtype: torch.dtype) -> None:
        directory = config.additional_config.get(_BUNDLE)
        bundle = Bundle.load(directory) if directory else None
        self.manifest = bundle.manifest if bundle else None
        self.net: ReasoningNet | None = bundle.reasoning_net() if bundle else None
        self.probe: Probe | None = bundle.probe() if bundle else None
        self.user_probes = [UserProbe(file) for file in read_probes([*map(Path, config.additional_config.get(_PROBES, ()))])]
        self.dtype = network_dtype(device, base_dtype)
        self.max_padded_tokens = _ON_CPU if device.type == "cpu" else MAX_PADDED_TOKENS
        self._device, self._longest_prompt = device, config.model_config.max_model_len
        for module in self._modules:
            # Probes are tiny, and their scores are compared with thresholds: always in float32.
            module.to(device, self.dtype if module is self.net else torch.float32).requires_grad_(False)

    @property
    def _modules(self) -> list[torch.nn.Module]:
        return [module for module in (self.net, self.probe, *self.user_probes) if module is not None]

    @property
    def num_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for module in self._modules for p in module.parameters())

    @property
    def layers(self) -> tuple[int, ...]:
        """Earlier ones that the bundle's probe reads."""
        return self.probe.config.layers if self.probe else ()

    @property
    def num_states(self) -> int:
        """Hidden states that are kept for each token of the KV cache."""
        if average(probe.file for probe in self.user_probes):
            return 1 + len(self.layers)
        return self.manifest.num_states if self.manifest else 0

    @property
    def prompt_window(self) -> int | None:
        """How many positions at a prompt's end are read; None: all."""
        if self.manifest is None or average(probe.file for probe in self.user_probes):
            return None
        return self.manifest.prompt_window

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Think about the most that a micro-batch holds, for as many latents as can be asked for."""
        if self.net is None:
            return
        config = self.net.config
        longest = (
            min(config.max_prompt_tokens or self._longest_prompt, self._longest_prompt) if config.reads_all_positions else 1
        )
        mask = torch.ones(max(1, self.max_padded_tokens // longest), longest, dtype=torch.bool, device=self._device)
        states = torch.zeros(*mask.shape, config.base_hidden_size, dtype=self.dtype, device=self._device)
        self.net(states, states, mask)


def network_dtype(device: torch.device, base_dtype: torch.dtype) -> torch.dtype:
    """The base's; on a CPU that computes in bf16 (the network's own, as it is stored) that: twice as fast as float32."""
    return compute_dtype(device) if device.type == "cpu" and base_dtype is torch.float32 else base_dtype
