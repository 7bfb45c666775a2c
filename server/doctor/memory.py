"""What of the memory is left for the KV cache beside weights, network and pages, computed as vLLM does, from the configuration.

On a CPU vLLM takes what it is told to (`--kv-cache-gib`). On a GPU it measures: what stands here is an upper bound, since the
peak of its activations is not known before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CPU_BLOCK = 32
_GPU_BLOCK = 16
GPU_MEMORY_UTILIZATION = 0.92
"""vLLM's default."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes."""

    weights: int
    network: int
    kv_per_token: int
    states_per_token: int
    """Pages of hidden states, beside keys and values."""
    for_cache: int
    """KV cache and pages together."""

    def num_tokens(self, block_size: int) -> int:
        """That the cache holds, in whole blocks."""
        return max(0, self.for_cache // (self.kv_per_token + self.states_per_token) // block_size * block_size)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that sees images, too, the part that writes."""
    return config.get("text_config") or config


def kv_bytes_per_token(config: Mapping[str, Any], bytes_a_value: int) -> int:
    """Of all layers, as if none had a sliding window; with latent attention (DeepSeek's) one compressed row each."""
    text = text_config(config)
    layers, heads = text["num_hidden_layers"], text["num_attention_heads"]
    if rank := text.get("kv_lora_rank"):
        return int(layers * (rank + text.get("qk_rope_head_dim", 0)) * bytes_a_value)
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    return int(2 * layers * (text.get("num_key_value_heads") or heads) * head_dim * bytes_a_value)


def served_dtype(config: Mapping[str, Any], device: str, capability: tuple[int, int] | None = None, *, is_demo: bool) -> str:
    """What vLLM takes with `--dtype auto`: the checkpoint's, and of float32 its half. The demo on a CPU keeps float32."""
    if is_demo and device == "cpu":
        return "float32"
    text = text_config(config)
    stored = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype") or "float32")
    preferred = "float16" if capability is not None and capability < (8, 0) else "bfloat16"
    return preferred if stored in ("float32", "bfloat16") else stored


def bytes_a_value(dtype: str) -> int:
    return _BYTES.get(dtype, 2)


def block_size(device: str) -> int:
    return _CPU_BLOCK if device == "cpu" else _GPU_BLOCK


def size(count: int) -> str:
    unit = min(3, int(math.log2(max(count, 1)) // 10))
    return f"{count / 2 ** (10 * unit):.1f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
