"""A client's connection: uvicorn's, which would wait for a head for ever, keep as much of it as comes, and wait for ever for a
client to read."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
_READ_FIRST_SECONDS = 0.001  # the next turn of the loop
_PIECE_BYTES = 16 * 2**10  # that are parsed before they are counted
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """Between answers, a complete head must come in so many seconds. It is small, and so are a body's trailers. A client that
    has not read what was written for it after as many seconds is cut off."""

    def __init__(self, *args: Any, client_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._client_seconds = client_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._unparsed_bytes = 0  # that the parser keeps of a header, or ignores

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Too much waits to be read."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(self._client_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """What has come already is read first: timers may run before that, and a loop that was busy would close, so reset, a
        connection whose next request has arrived."""
        self.timeout_keep_alive_task = self.loop.call_later(_READ_FIRST_SECONDS, super().timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            if self.transport.is_closing() or self not in self.connections:  # closed, or a web socket
                return
            self._receive(data[start : start + _PIECE_BYTES])
        if self._is_idle and self._head_timer is None and self in self.connections:
            self._expect_head()

    def _receive(self, piece: bytes) -> None:
        self._unparsed_bytes += len(piece)
        super().data_received(piece)
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self._client_seconds, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._measure(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._measure(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._stop_expecting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_message_complete()

    def _measure(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("too large a head")  # ends the parsing

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        if self._is_idle:
            self.transport.write(_TOO_LARGE)
        self.transport.close()
