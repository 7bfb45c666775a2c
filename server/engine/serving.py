"""Serve HTTP until a signal, or until the engine dies.

first signal     nobody new comes in; what runs may end, for so many seconds; then it is answered with an error
second signal    the end, at once
engine dies      vLLM answers what runs with an error; then `EngineDiedError`, for the supervisor to start the server again
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import uvicorn
from fastapi import FastAPI
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

from server.engine.connection import Connection
from server.engine.errors import EngineDiedError
from server.engine.seam import HybridEngine
from server.engine.worker.lifetime import end_at_once
from server.http.admission import Admission
from server.http.errors import UnavailableError
from server.settings import Settings

logger = logging.getLogger("vllm.latentserve.serving")
_KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections (OpenAI's 5, vLLM's own default): they close, not we
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS_SECONDS = 3
"""For what is still to be written, after all answers have ended."""


class _Server(uvicorn.Server):
    """uvicorn's, without its signals, and with an eye on the engine ten times a second."""

    def __init__(self, config: uvicorn.Config, engine: HybridEngine) -> None:
        super().__init__(config)
        self._engine = engine

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._engine.errored


class _Ending:
    """What signals do to a server."""

    def __init__(self, server: uvicorn.Server, admission: Admission, drain_seconds: float) -> None:
        self._server, self._admission, self._drain_seconds = server, admission, drain_seconds
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            if self._task:
                self._task.cancel()

    def _signalled(self) -> None:
        if self._task is None:
            self._admission.is_draining = True
            self._task = asyncio.create_task(self._drain())
        else:
            end_at_once()

    async def _drain(self) -> None:
        running, seconds = self._admission.in_flight, self._drain_seconds
        logger.info("Shutting down: %d answers run, and have %g seconds. A second signal ends them.", running, seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._admission.drained()
        self._admission.end(UnavailableError("The server is shutting down. Send the request again.", "draining", 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._admission.drained()
        self._server.should_exit = True


async def serve_app(
    app: FastAPI, sock: socket.socket, args: Namespace, settings: Settings, engine: HybridEngine, admission: Admission
) -> None:
    """Until a signal. Raises `EngineDiedError`."""
    log_config = get_uvicorn_log_config(args)
    config = uvicorn.Config(
        app,
        http=partial(Connection, client_seconds=settings.client_timeout_seconds),  # type: ignore[arg-type]
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=int(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", _KEEP_ALIVE_SECONDS)),
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        **({"log_config": log_config} if log_config is not None else {}),
    )
    config.load()
    server = _Server(config, engine)
    app.state.server = server  # vLLM's handlers of errors end it when they find the engine dead
    with _Ending(server, admission, settings.drain_seconds).on_signals(), _fresh_certificates(config, args):
        await server.serve(sockets=[sock])
    gc.unfreeze()  # what vLLM froze when it started: libraries would report all of it as leaked
    if engine.errored and not admission.is_draining:
        raise EngineDiedError(
            f"the engine's process has died ({_cause(engine)}), and the server with it. Its own error is above; if there is "
            "none, the kernel may have killed it for want of memory. Start the server again."
        )


@contextlib.contextmanager
def _fresh_certificates(config: uvicorn.Config, args: Namespace) -> Iterator[None]:
    """Read them anew whenever their files change."""
    if not (args.enable_ssl_refresh and config.ssl):
        yield
        return
    refresher = SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
    try:
        yield
    finally:
        refresher.stop()


def _cause(engine: HybridEngine) -> str:
    manager = engine.engine_core.resources.engine_manager
    codes = manager.finished_procs().values() if manager else ()
    return ", ".join(f"signal {-code}" if code < 0 else f"exit code {code}" for code in codes) or "no exit code"
