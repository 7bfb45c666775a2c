"""Check a bundle against the engine that will serve it, and say what a server will need."""

import asyncio
import json
from typing import Any

from reasoning_net.bundle import Bundle, checkpoint_directory
from reasoning_net.errors import StageError
from reasoning_net.rollouts import prepare_environment
from server.doctor.memory import kv_bytes_per_token, size, text_config
from server.engine.base import base_of
from server.engine.readiness import Readiness
from server.engine.start import parse_vllm_args, start_engine
from server.settings import Settings


def check_bundle(settings: Settings, bundle: Bundle) -> dict[str, Any]:
    """The parity with what training saw, and the needs; raises `StageError` when the engine sees something else."""
    prepare_environment(settings.model, settings.kv_cache_gib)
    flags = ["--dtype", "float32", "--enforce-eager"] if settings.runs_on == "cpu" else []
    readiness = asyncio.run(_check(settings, bundle, flags))
    if not readiness.ready:
        raise StageError(f"The engine does not agree with the bundle: {readiness.problem}")
    parity = None if readiness.parity is None else round(readiness.parity, 5)
    return {"parity with the engine (cosine)": parity, "a server needs": needs(settings.model, bundle)}


async def _check(settings: Settings, bundle: Bundle, flags: list[str]) -> Readiness:
    from server.app import available_modes

    readiness, args = Readiness(), parse_vllm_args(settings, flags, bundle)
    base = base_of(args, settings, bundle)
    async with start_engine(args, settings, bundle, base) as engine:
        await readiness.check(engine, bundle, available_modes(bundle, base, can_mix=False))
    return readiness


def needs(model: str, bundle: Bundle) -> dict[str, str]:
    """Memory in the dtype of the checkpoint, by what takes it."""
    directory = checkpoint_directory(model)
    config = json.loads((directory / "config.json").read_text())
    kv_bytes = kv_bytes_per_token(config, 2)
    figures = {
        "base": sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        "a token in the KV cache": kv_bytes,
    }
    if bundle.manifest.reasoning_net:
        figures["reasoning network"] = (bundle.directory / "reasoning_net.safetensors").stat().st_size
        latents = bundle.manifest.num_latent_tokens or 0
        figures[f"{latents} latents of a request"] = latents * (kv_bytes + 2 * text_config(config)["hidden_size"])
    return {name: size(count) for name, count in figures.items()}
