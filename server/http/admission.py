"""Who may come in: so many answers run or wait, and none begin while the server drains.

A request is admitted once, before its body is understood: none is refused between its passes. vLLM counts engine requests, of
which a latent request makes two, so its own limits (`--max-num-queued-reqs`) are kept here.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from server.http.errors import LatentserveError, OverloadedError, UnavailableError

_RECENT = 0.05  # weight of the newest request in the mean of seconds


class Admission:
    """Counts answers: a request for several (`n`, a list of prompts) counts as many."""

    def __init__(self, capacity: int, queue: int) -> None:
        """`capacity`: answers that the engine writes at once; `queue`: as many more may wait."""
        self.capacity, self.most = capacity, capacity + queue
        self.in_flight = 0
        self.is_draining = False
        self._seconds = 1.0  # that an answer takes, of late
        self._ends: set[asyncio.Future[LatentserveError]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def load(self) -> float:
        """Share of the room that is taken."""
        return self.in_flight / self.most

    @contextmanager
    def admit(self, answers: int) -> "Iterator[asyncio.Future[LatentserveError]]":
        """Room for a request with so many answers, and what becomes the error that it has to end with, if it has to.

        Raises `OverloadedError` (429) where there is none, `UnavailableError` (503) while the server drains.
        """
        if self.is_draining:
            raise UnavailableError("The server is shutting down. Send the request to another one, or again.", "draining", 1)
        if self.in_flight + answers > self.most:
            raise OverloadedError(
                f"The server is full: {self.in_flight} answers run or wait, of at most {self.most}. Try again later.",
                "queue_full", self.retry_after,
            )  # fmt: skip
        self.in_flight += answers
        self._idle.clear()
        started, end = asyncio.get_running_loop().time(), asyncio.get_running_loop().create_future()
        self._ends.add(end)
        try:
            yield end
        finally:
            self._ends.remove(end)
            self.in_flight -= answers
            self._seconds += _RECENT * (asyncio.get_running_loop().time() - started - self._seconds)
            if not self.in_flight:
                self._idle.set()

    @property
    def retry_after(self) -> int:
        """Seconds after which there will be room, as far as the last answers tell."""
        return max(1, min(60, math.ceil(self._seconds * max(0, self.in_flight - self.capacity) / self.capacity)))

    def end(self, error: LatentserveError) -> None:
        """All that runs or waits ends with this error."""
        for end in self._ends:
            if not end.done():
                end.set_result(error)

    async def drained(self) -> None:
        """Until nothing is in flight."""
        await self._idle.wait()
