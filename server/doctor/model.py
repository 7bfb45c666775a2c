"""The model's files, its layout, the bundle, and what is left for the KV cache."""

import json
import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reasoning_net.bundle import Bundle, checkpoint_directory
from reasoning_net.errors import BundleError, StageError
from reasoning_net.layout import Layout
from router.policy import RouterError
from server.doctor import Finding, memory, ok
from server.doctor.machine import GIB, Gpu, free_gib
from server.settings import Settings

_PROCESSES_GIB = 2.1
"""Of a server on a CPU, without weights and cache: front end 0.5, engine 1.6 (deploy/README.md)."""


def examine(settings: Settings, device: str, gpus: list[Gpu], max_model_len: int | None) -> Iterator[Finding]:
    directory = yield from _files(settings.model)
    if directory is None:
        return
    try:
        config = json.loads((directory / "config.json").read_text())
    except ValueError as error:
        yield Finding("error", "model", f"{directory / 'config.json'} cannot be read: {error}", "--model with another copy")
        return
    bundle = yield from _bundle(settings, directory)
    yield from _layout(directory, config, bundle)
    dtype = memory.served_dtype(config, device, gpus[0].capability if gpus else None, is_demo=settings.is_demo)
    yield ok("dtype", f"{dtype} (unless --dtype says otherwise)")
    try:
        footprint = _footprint(directory, config, bundle, dtype, _cache_bytes(settings, device, gpus))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        yield Finding("warning", "KV cache", f"its size is not known: config.json does not say {error}")
        return
    yield from _memory(footprint, settings, device)
    yield _cache(footprint, memory.text_config(config), device, max_model_len)


def _files(model: str) -> Generator[Finding, None, Path | None]:
    """Returns the checkpoint's directory, if it is there."""
    is_path = model.startswith((".", "/", "~")) or Path(model).exists()
    try:
        directory = checkpoint_directory(model) if not is_path else Path(model)
    except Exception:  # whatever the hub's client raises
        if is_offline := os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            text = f"{model} is neither a directory nor in the hub's cache, and HF_HUB_OFFLINE is set"
        else:
            text = f"{model} is neither a directory nor in the hub's cache: a server downloads it, if that is its id"
        yield Finding("error" if is_offline else "warning", "model", text, f"hf download {model}")
        return None
    if not (directory / "config.json").is_file():
        yield Finding(
            "error", "model", f"there is no model in {model}: a checkpoint directory has a config.json", "--model PATH_OR_ID"
        )
        return None
    weights = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    if missing := sorted(named - {path.name for path in weights}):
        yield Finding("error", "model", f"{directory} lacks {', '.join(missing)}", f"hf download {model}")
        return None
    if not weights:
        yield Finding("error", "model", f"{directory} has no *.safetensors", "--model with a checkpoint that has them")
        return None
    yield ok("model", f"{directory}, {memory.size(sum(path.stat().st_size for path in weights))} of weights")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        yield Finding("error", "tokenizer", f"{directory} has none", f"hf download {model}")
        return None
    return directory


def _bundle(settings: Settings, directory: Path) -> Generator[Finding, None, Bundle | None]:
    """Returns the bundle, if it fits."""
    try:
        if (found := settings.bundle_directory) is None:
            text = "none: auto chooses between direct and explicit by first-token entropy, and there is no latent mode"
            yield Finding("warning", "bundle", text, "latentserve bundle --output DIR && latentserve router fit --bundle DIR")
            return None
        bundle = Bundle.load(found)
        bundle.check_base(str(directory))
        settings.router(bundle.manifest)
    except (BundleError, RouterError) as error:
        yield Finding("error", "bundle", str(error).rstrip("."))
        return None
    manifest = bundle.manifest
    net, probe = manifest.reasoning_net, manifest.probe
    parts = [
        f"a network ({manifest.num_latent_tokens} of at most {net.num_latent_tokens} latents)" if net else "no network",
        f"a probe ({', '.join(probe.features)})" if probe else "no probe",
        "calibrated" if manifest.calibration else "not calibrated",
    ]
    text = f"{found}, fingerprint {bundle.fingerprint()}, fits: {', '.join(parts)}"
    if probe is None or manifest.calibration is None:
        yield Finding("warning", "bundle", text, f"latentserve router fit --model {settings.model} --bundle {found}")
    else:
        yield ok("bundle", text)
    return bundle


def _layout(directory: Path, config: Mapping[str, Any], bundle: Bundle | None) -> Iterator[Finding]:
    from transformers import AutoTokenizer

    from reasoning_net.layout import default_layout
    from reasoning_net.tokenizer_check import warning

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        layout = bundle.manifest.layout if bundle else default_layout(tokenizer, int(memory.text_config(config)["vocab_size"]))
    except StageError as error:
        yield Finding("warning", "layout", str(error).rstrip("."))
        return
    except Exception as error:  # whatever a tokenizer of others raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        yield Finding("error", "tokenizer", f"{directory} cannot be read: {reason}", "--model with another base")
        return
    yield ok("layout", _said(layout))
    if found := warning(tokenizer, layout, has_latents=bool(bundle and bundle.manifest.reasoning_net)):
        yield Finding("warning", "tokenizer", found.rstrip("."), "latentserve check --tokenizer --model …")


def _said(layout: Layout) -> str:
    token = layout.placeholder_token_id
    place = "no place for latents" if token is None else f"latents over token {token}"
    if layout.think_tags is None:
        return f"no think tags, so answers are direct, and explicit with --thinking-prompt; {place}"
    return f"direct {layout.direct!r}, latent {layout.before_latents!r} z {layout.after_latents!r}, {place}"


def _cache_bytes(settings: Settings, device: str, gpus: list[Gpu]) -> int:
    """For the KV cache and pages; on a GPU with weights and network, which are taken off."""
    if device == "cpu":
        return int(os.environ.get("VLLM_CPU_KVCACHE_SPACE") or settings.kv_cache_gib) * GIB
    gpu = gpus[0] if gpus else None
    return int(min(gpu.total_gib * memory.GPU_MEMORY_UTILIZATION, gpu.free_gib) * GIB) if gpu else 0


def _footprint(
    directory: Path, config: Mapping[str, Any], bundle: Bundle | None, dtype: str, for_cache: int
) -> memory.Footprint:
    text, size = memory.text_config(config), memory.bytes_a_value(dtype)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    scale = 1.0 if config.get("quantization_config") else size / memory.bytes_a_value(stored)
    on_disk = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    part = bundle.directory / "reasoning_net.safetensors" if bundle and bundle.manifest.reasoning_net else None
    return memory.Footprint(
        weights=int(on_disk * scale),
        network=part.stat().st_size * size // 2 if part else 0,  # stored in bf16
        kv_per_token=memory.kv_bytes_per_token(config, size),
        states_per_token=bundle.manifest.num_states * text["hidden_size"] * size if bundle else 0,
        for_cache=for_cache,
    )


def _memory(footprint: memory.Footprint, settings: Settings, device: str) -> Iterator[Finding]:
    parts = f"weights {memory.size(footprint.weights)}, network {memory.size(footprint.network)}"
    if device != "cpu":
        yield ok("needs", f"of the GPU: {parts}, and vLLM's activations")
        return
    total = (footprint.weights + footprint.network + footprint.for_cache) / GIB + _PROCESSES_GIB
    text = f"{total:.1f} GiB: {parts}, KV cache {memory.size(footprint.for_cache)}, processes {_PROCESSES_GIB} GiB"
    if total <= (free := free_gib()):
        yield ok("needs", text)
    else:
        mend = f"--kv-cache-gib {max(1, settings.kv_cache_gib - int(total - free) - 1)}, or a smaller base"
        yield Finding("error", "needs", f"{text}; {free:.1f} GiB are free", mend)


def _cache(footprint: memory.Footprint, text: Mapping[str, Any], device: str, max_model_len: int | None) -> Finding:
    left = footprint
    if device != "cpu":
        taken = footprint.weights + footprint.network
        left = replace(footprint, for_cache=footprint.for_cache - taken)
    tokens, per_token = left.num_tokens(memory.block_size(device)), left.kv_per_token + left.states_per_token
    longest = max_model_len or int(text.get("max_position_embeddings") or tokens)
    at_most = "" if device == "cpu" else "at most "
    said = (
        f"{at_most}{tokens:,} tokens in {memory.size(max(0, left.for_cache))} ({left.kv_per_token:,} bytes of keys and values "
        f"and {left.states_per_token:,} of hidden states each); the longest context is {longest:,}"
    )
    if tokens >= longest:
        return ok("KV cache", said)
    more = "--kv-cache-gib " + str(-(-longest * per_token // GIB)) if device == "cpu" else "a larger GPU"
    # vLLM refuses to start where one request of the longest context does not fit.
    return Finding("error", "KV cache", f"{said}: it does not fit", f"{more}, or --max-model-len {tokens}" if tokens else more)
