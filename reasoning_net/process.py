"""A stage in a process of its own: its memory is given back when it ends, and it ends with whoever started it."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from transformers.utils.logging import disable_progress_bar

from reasoning_net.errors import StageError

P = ParamSpec("P")
T = TypeVar("T")
_PR_SET_PDEATHSIG = 1


def apart(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function returns, or raises. `StageError` where its process was killed."""
    spawn = multiprocessing.get_context("spawn")  # a fork would share the threads' locks
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise StageError(
                f"The process of {name} was killed, most likely for want of memory. The same command goes on where it was."
            ) from error


def _begin() -> None:
    """End with the parent: else a stage whose command was killed would write into the directory of the command that resumes it.
    And show the stage's own progress alone."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    disable_progress_bar()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
