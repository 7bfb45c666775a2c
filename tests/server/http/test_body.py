import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.datastructures import Headers

from server.http.body import read_body
from server.http.errors import LatentserveError


def receiver(*chunks: bytes, ends: bool = True) -> Any:
    """What ASGI's `receive` gives; without an end it waits for ever after the last chunk."""
    messages: Iterator[bytes] = iter(chunks)

    async def receive() -> dict[str, Any]:
        chunk = next(messages, None)
        if chunk is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": chunk, "more_body": chunk is not chunks[-1] or not ends}

    return receive


async def test_chunks_become_one_body() -> None:
    assert await read_body(Headers({}), receiver(b"{", b"}"), 1, 1) == b"{}"


@pytest.mark.parametrize(
    ("headers", "chunks", "ends", "status"),
    [
        ({"content-length": str(2**20 + 1)}, (), True, 413),
        ({}, (b"x" * 2**19, b"x" * 2**19, b"x"), False, 413),  # chunked, without end
        ({"content-length": "5"}, (b"{",), False, 408),
        ({"content-encoding": "gzip"}, (b"{}",), True, 415),
        ({"content-type": "text/plain"}, (b"{}",), True, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, (b"{}",), True, 415),
    ],
)
async def test_bounds(headers: dict[str, str], chunks: tuple[bytes, ...], ends: bool, status: int) -> None:
    with pytest.raises(LatentserveError) as error:
        await read_body(Headers(headers), receiver(*chunks, ends=ends), 1, 0.05)
    assert error.value.status == status


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/problem+json", ""])
async def test_kinds_of_json(kind: str) -> None:
    assert await read_body(Headers({"content-type": kind}), receiver(b"{}"), 1, 1) == b"{}"
