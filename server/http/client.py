"""The client of one request: its body, replayed, one watch for its leaving, and the time that its answer may take."""

import asyncio

from starlette.types import Message, Receive

from server.http.errors import DeadlineError, LatentserveError

_GRACE_SECONDS = 1.0  # for work to end by itself


class Client:
    """However many layers ask for the body, or wait for the client to leave."""

    def __init__(
        self, body: bytes, receive: Receive, seconds: float, end: "asyncio.Future[LatentserveError] | None" = None
    ) -> None:
        """`seconds`: from now on, for the whole answer. `end`: becomes the error that the answer has to end with."""
        self.body = body
        self._end = end or asyncio.get_running_loop().create_future()
        self._seconds, self._deadline = seconds, asyncio.get_running_loop().time() + seconds
        self._is_read = False
        self._gone = asyncio.ensure_future(self._watch(receive))
        self._over = asyncio.Event()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._over.set()

    @property
    def has_left(self) -> bool:
        return self._gone.done()

    async def receive(self) -> Message:
        """The body; then, when nobody waits for an answer any more, that the client has left."""
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    def replayed(self) -> Receive:
        """The same request once more."""
        self._is_read = False
        return self.receive

    async def until_left(self, work: "asyncio.Task[None]") -> None:
        """Until the work is done, or the client has left. Raises the error that it has to end with; `DeadlineError` when its
        time is over."""
        left = self._deadline - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait((work, self._gone, self._end), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if self._end in done and work not in done:
            raise self._end.result()
        if not done:
            raise DeadlineError(f"The answer took longer than {self._seconds:g} seconds.")

    async def stop(self, work: "asyncio.Task[None]") -> None:
        """What is not done ends by itself when it hears that the client has left, and so do the tasks that it has started:
        those of vLLM's handlers would outlive a cancellation. What does not listen is cancelled."""
        if work.done():
            return work.result()
        self._over.set()
        await asyncio.wait((work,), timeout=_GRACE_SECONDS)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return None
