"""A client's connection between two requests."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.engine.connection import Connection

KEEP_ALIVE_SECONDS = 1


@pytest.fixture
def loop_and_url() -> Iterator[tuple[asyncio.AbstractEventLoop, str]]:
    """A server whose idle connections end after a second, and its event loop."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    config = uvicorn.Config(
        app,
        http=partial(Connection, client_seconds=30),  # type: ignore[arg-type]
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_level="error",
    )
    server, loop = uvicorn.Server(config), uvloop.new_event_loop()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()  # before the server does: who connects meanwhile waits
        thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([sock]),))
        thread.start()
        yield loop, f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
    loop.close()


def stall(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Hold the loop up where it looks for what can be read: timers come next."""
    ours, theirs = socket.socketpair()

    def sleep() -> None:
        loop.remove_reader(theirs)
        theirs.recv(1)
        time.sleep(seconds)
        theirs.close()

    loop.call_soon_threadsafe(loop.add_reader, theirs, sleep)
    ours.send(b"1")
    ours.close()


def test_a_request_that_came_while_the_loop_was_busy_is_answered(loop_and_url: tuple[asyncio.AbstractEventLoop, str]) -> None:
    """The connection's idle time is over when the loop goes on, and its next request has arrived."""
    loop, url = loop_and_url
    with httpx.Client(base_url=url) as client:
        assert client.get("/").text == "here"
        stall(loop, KEEP_ALIVE_SECONDS + 0.5)
        time.sleep(0.2)  # it is held up
        assert client.get("/").text == "here"
