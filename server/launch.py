"""Run the server from the command line: every way it can fail to start becomes one sentence, as soon as it can be known."""

import asyncio
import contextlib
import json
import logging.config
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import yaml

from reasoning_net.errors import BundleError
from reasoning_net.manifest import Manifest
from router.user_probe import read_probes
from server.engine.errors import ConfigurationError
from server.settings import Settings, split_file

if TYPE_CHECKING:
    from reasoning_net.bundle import Bundle


def prepare(settings: Settings, vllm_flags: Sequence[str]) -> "tuple[Settings, Bundle | None]":
    """Everything that comes before vLLM is loaded: the whole settings, the bundle, the environment.

    Raises an error whose message is for the user, before torch is loaded where it can.
    """
    settings = settings.completed(_read(split_file(vllm_flags)[0]))
    _check_model(settings)
    _check_bundle(settings)
    read_probes(settings.probe)
    if settings.api_keys_file:
        from server.http.keys import read_keys

        read_keys(settings.api_keys_file)
    if settings.quota_store:
        from server.http.quota_store import SharedStore

        if not settings.api_keys_file:
            raise ConfigurationError("--quota-store is for limits of keys: name them with --api-keys-file.")
        SharedStore(settings.quota_store.get_secret_value())
    from reasoning_net.bundle import Bundle
    from reasoning_net.rollouts import prepare_environment

    _check_device(settings)
    _check_memory(settings)
    bundle = Bundle.load(settings.bundle_directory) if settings.bundle_directory else None
    if bundle:
        bundle.check_base(settings.model)
    prepare_environment(settings.model, settings.kv_cache_gib)
    os.environ.setdefault("OTEL_SERVICE_NAME", "latentserve")
    if settings.log_format == "json":
        _log_json()
    return settings, bundle


def run(settings: Settings, vllm_flags: Sequence[str]) -> None:
    """Serve until a signal. Raises an error whose message is for the user."""
    settings, bundle = prepare(settings, vllm_flags)
    import uvloop

    from server.app import serve
    from server.engine.worker.lifetime import end_at_once, sockets_directory

    try:
        with sockets_directory(), _on_signals(end_at_once):
            uvloop.run(serve(settings, vllm_flags, bundle))
    except OSError as error:
        if "ddress already in use" not in str(error):
            raise
        raise ConfigurationError(
            f"port {settings.port} on {settings.host} is in use. Stop what listens there, or choose another with --port."
        ) from error
    except RuntimeError as error:
        if "Engine core initialization failed" not in str(error):
            raise
        raise ConfigurationError(
            "the engine could not start: its own error is above. If it ran out of memory, lower --kv-cache-gib (CPU), "
            "--gpu-memory-utilization (CUDA), --max-model-len or --max-num-seqs."
        ) from error


@contextlib.contextmanager
def _on_signals(handler: Callable[..., NoReturn]) -> Iterator[None]:
    """While the engine starts, which holds the event loop up for long; a server that answers has handlers of its own.

    The handler is to end the process itself: an exception would be lost where vLLM waits for the engine.
    """
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _log_json() -> None:
    """All loggers of this process and of those that it starts; a logging configuration that the user has set wins."""
    config = os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("logging.json")))
    logging.captureWarnings(True)
    logging.config.dictConfig(json.loads(Path(config).read_text()))


def _read(file: Path | None) -> dict[str, Any]:
    """What vLLM's `--config` file says."""
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {file} cannot be read: {error}.") from error
    if file.suffix not in (".yaml", ".yml") or not isinstance(content, dict):
        raise ConfigurationError(f"--config {file} must be a YAML file (.yaml) of flags, such as `max-model-len: 2048`.")
    return {str(key): value for key, value in content.items()}


def _check_model(settings: Settings) -> None:
    path = settings.model
    looks_like_path = path.startswith((".", "/", "~")) or os.path.exists(path)
    if looks_like_path and not os.path.isfile(os.path.join(path, "config.json")):
        raise ConfigurationError(
            f"there is no model in {path}: a checkpoint directory has a config.json. Name one, or an id, with --model."
        )


def _check_bundle(settings: Settings) -> None:
    """What can be said from bundle.json alone."""
    manifest = Manifest.read(settings.bundle_directory) if settings.bundle_directory else None
    router = settings.router(manifest)
    if settings.router_file:
        if settings.policy:
            raise ConfigurationError("--router-file names the policy: remove --policy.")
        from server.router_file import RouterFile

        asyncio.run(RouterFile(settings.router_file, router).load())
    if settings.num_latents is not None:
        if manifest is None or manifest.reasoning_net is None:
            raise ConfigurationError("--num-latent-tokens is for latents, and there is no bundle with a network: see --bundle.")
        if settings.num_latents == "auto":
            if not (manifest.probe and manifest.probe.ladder):
                raise ConfigurationError(
                    "--num-latent-tokens auto needs a probe that knows how many latents suffice: fit one with "
                    "`latentserve router fit --ladder 4,8`, or name a number."
                )
            return
        try:
            manifest.check_num_latents(settings.num_latents, "--num-latent-tokens")
        except ValueError as error:
            raise BundleError(f"{error}.") from error


def _check_device(settings: Settings) -> None:
    from reasoning_net.precision import found_device

    if settings.runs_on == "cuda" != found_device():
        raise ConfigurationError("--device cuda, but torch sees no GPU: `latentserve doctor --device cuda` says why.")


def _check_memory(settings: Settings) -> None:
    if settings.runs_on != "cpu":
        return  # vLLM measures a GPU itself
    free_gib = psutil.virtual_memory().available / 2**30
    if settings.kv_cache_gib >= free_gib:
        raise ConfigurationError(
            f"the KV cache is to take {settings.kv_cache_gib} GiB, but only {free_gib:.1f} GiB of memory are free. "
            "Set --kv-cache-gib lower, or stop what uses the memory."
        )
