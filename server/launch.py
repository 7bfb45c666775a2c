"""Run the server from the command line: every way it can fail to start becomes one sentence."""

import os
import sys
from collections.abc import Sequence

from reasoning_net.bundle import BundleError
from server.settings import Settings


def run(settings: Settings, vllm_flags: Sequence[str]) -> str | None:
    """Serve until a signal. Returns what went wrong, or None."""
    problem = _check_model(settings)
    if problem:
        return problem
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # our hooks are in the V1 runner
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.kv_cache_gib))
    if os.path.isdir(settings.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import uvloop

    from server.app import serve
    from server.engine.launch import ConfigurationError

    try:
        uvloop.run(serve(settings, vllm_flags))
    except (BundleError, ConfigurationError) as error:
        return str(error)
    except OSError as error:
        if "ddress already in use" in str(error):
            return f"port {settings.port} on {settings.host} is in use. Stop what listens there, or choose another with --port."
        raise
    except KeyboardInterrupt:
        return None
    except (RuntimeError, ValueError) as error:
        if "memory" in str(error).lower():
            return (
                f"the engine could not start for lack of memory: {error}. Lower LATENTSERVE_KV_CACHE_GIB (CPU) or "
                "--gpu-memory-utilization, --max-model-len or --max-num-seqs."
            )
        raise
    return None


def _check_model(settings: Settings) -> str | None:
    path = settings.model
    looks_like_path = path.startswith((".", "/", "~")) or os.path.exists(path)
    if looks_like_path and not os.path.isfile(os.path.join(path, "config.json")):
        return f"there is no model in {path}: a checkpoint directory has a config.json. Name one, or an id, with --model."
    if settings.device == "cuda" and sys.platform == "darwin":
        return "there is no CUDA on this machine. Use --device cpu."
    return None
