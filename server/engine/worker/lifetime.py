"""The engine's processes end with the front end, and when it says so.

vLLM's do not: when the front end is killed, its engine waits for requests for ever. And a terminal sends Ctrl+C to all
processes at once, so that the engine would drop what the front end lets end.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil
from vllm import envs

_BASE = "VLLM_RPC_BASE_PATH"
_SOCKETS_PREFIX = "latentserve-"  # of the directory with the sockets between the processes of one server
_MOST_OF_A_BASE = 48  # characters: a socket's whole path may have 107
_LOOK_SECONDS = 0.5
_WATCH, _OURS = "parent-watch", ("EngineCore", "VllmWorker")  # a thread's name, and beginnings of processes'


@contextlib.contextmanager
def sockets_directory() -> Iterator[None]:
    """Where vLLM puts its sockets meanwhile: it removes none of them."""
    given, base = os.environ.get(_BASE), envs.VLLM_RPC_BASE_PATH
    base = base if len(base) <= _MOST_OF_A_BASE else "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix=_SOCKETS_PREFIX, dir=base, ignore_cleanup_errors=True) as directory:
        os.environ[_BASE] = directory
        try:
            yield
        finally:
            del os.environ[_BASE]
            if given is not None:
                os.environ[_BASE] = given


def end_at_once(*_: object) -> NoReturn:
    """In the front end, from a handler of signals: all processes end without a word."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):  # which tidies up after all of us
                child.kill()
    _remove_sockets()
    os._exit(0)


def follow_parent() -> None:
    """In vLLM's own processes, the engine's and the workers'; an engine in its user's process changes nothing there."""
    parent, name = multiprocessing.parent_process(), multiprocessing.current_process().name
    follows = any(thread.name == _WATCH for thread in threading.enumerate())
    if parent is not None and name.startswith(_OURS) and not follows:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_after, args=(parent.pid,), name=_WATCH, daemon=True).start()


def _end_after(parent: int) -> None:
    """When a process has died, another one adopts its children. (The pipe of multiprocessing's is no sign of it: brothers that
    were forked later hold it open.)"""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    _remove_sockets()
    for worker in multiprocessing.active_children():
        worker.kill()
    os.kill(os.getpid(), signal.SIGKILL)  # vLLM's own end takes seconds, and nobody is left to wait for it


def _remove_sockets() -> None:
    """As `sockets_directory` does where there is time."""
    directory = Path(envs.VLLM_RPC_BASE_PATH)
    if directory.name.startswith(_SOCKETS_PREFIX):
        with contextlib.suppress(OSError):
            for path in directory.iterdir():
                if path.is_socket():
                    path.unlink()
            directory.rmdir()
