"""Run the server from the command line: every way it can fail to start becomes one sentence."""

import json
import logging.config
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from reasoning_net.bundle import BundleError
from reasoning_net.rollouts import prepare_environment
from server.settings import Settings


def run(settings: Settings, vllm_flags: Sequence[str]) -> str | None:
    """Serve until a signal. Returns what went wrong, or None."""
    problem = _check_model(settings) or _check_memory(settings)
    if problem:
        return problem
    prepare_environment(settings.model, settings.kv_cache_gib)
    os.environ.setdefault("OTEL_SERVICE_NAME", "latentserve")
    if settings.log_format == "json":
        _log_json()
    import uvloop

    from router.policy import RouterError
    from server.app import serve
    from server.engine.errors import ConfigurationError

    try:
        uvloop.run(serve(settings, vllm_flags))
    except (BundleError, ConfigurationError, RouterError) as error:
        return str(error)
    except OSError as error:
        if "ddress already in use" in str(error):
            return f"port {settings.port} on {settings.host} is in use. Stop what listens there, or choose another with --port."
        raise
    except KeyboardInterrupt:
        return None
    except RuntimeError as error:
        if "Engine core initialization failed" not in str(error):
            raise
        return (
            "the engine could not start: its own error is above. If it ran out of memory, lower "
            "LATENTSERVE_KV_CACHE_GIB (CPU), --gpu-memory-utilization (CUDA), --max-model-len or --max-num-seqs."
        )
    return None


def _log_json() -> None:
    """All loggers of this process and of those that it starts; a logging configuration that the user has set wins."""
    config = os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("logging.json")))
    logging.captureWarnings(True)
    logging.config.dictConfig(json.loads(Path(config).read_text()))


def _check_model(settings: Settings) -> str | None:
    path = settings.model
    looks_like_path = path.startswith((".", "/", "~")) or os.path.exists(path)
    if looks_like_path and not os.path.isfile(os.path.join(path, "config.json")):
        return f"there is no model in {path}: a checkpoint directory has a config.json. Name one, or an id, with --model."
    return None


def _check_memory(settings: Settings) -> str | None:
    if settings.device != "cpu":
        return None  # vLLM measures a GPU itself
    free_gib = psutil.virtual_memory().available / 2**30
    if settings.kv_cache_gib < free_gib:
        return None
    return (
        f"the KV cache is to take {settings.kv_cache_gib} GiB, but only {free_gib:.1f} GiB of memory are free. "
        "Set LATENTSERVE_KV_CACHE_GIB lower, or stop what uses the memory."
    )
