"""A request's body: read within bounds of size and time, and JSON in one plain encoding."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive

from server.http.errors import SlowClientError, TooLargeError, UnsupportedError

_MIB = 2**20


async def read_body(headers: Headers, receive: Receive, max_mib: int, seconds: float) -> bytes | None:
    """None when the client left. Raises `TooLargeError` (before anything is read, where the length is said), `SlowClientError`,
    and `UnsupportedError` for what is compressed, or says that it is no JSON."""
    _check_kind(headers)
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > max_mib * _MIB:
        raise _too_large(max_mib)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > max_mib * _MIB:
                    raise _too_large(max_mib)
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise SlowClientError(f"The body did not come within {seconds:g} seconds.") from None


def _check_kind(headers: Headers) -> None:
    encoding, kind = headers.get("content-encoding", "identity"), headers.get("content-type", "")
    kind = kind.partition(";")[0].strip().lower()
    if encoding.lower() != "identity":
        raise UnsupportedError(f"Bodies with Content-Encoding {encoding[:40]!r} are not read here. Send it as it is.")
    if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedError(f"The body must be JSON, not {kind[:80]!r}: send Content-Type: application/json.")


def _too_large(max_mib: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {max_mib} MiB, which is what this server reads (--max-body-mib).")
