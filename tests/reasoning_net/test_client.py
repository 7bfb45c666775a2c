"""Against a stub: what it does, a real server cannot be made to do in time."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reasoning_net.client import connected, gather
from reasoning_net.errors import StageError

MESSAGES = [{"role": "user", "content": "?"}]
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "stub", "route": {"mode": "latent", "discarded_tokens": 2},
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}}],
    "usage": {"completion_tokens": 3, "prompt_tokens": 1, "total_tokens": 4},
}  # fmt: skip


class Stub(BaseHTTPRequestHandler):
    lock = threading.Lock()
    in_flight = most = broken = 0

    def do_GET(self) -> None:
        self.say(200, {"data": [{"id": "stub", "object": "model", "created": 1, "owned_by": "us"}], "object": "list"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("mode") == "wrong":
            return self.say(400, {"error": {"message": "there is no mode wrong", "type": "BadRequestError", "code": 400}})
        with self.lock:
            if Stub.broken:
                Stub.broken -= 1
                return self.connection.close()
            Stub.in_flight += 1
            Stub.most = max(Stub.most, Stub.in_flight)
        time.sleep(0.05)
        with self.lock:
            Stub.in_flight -= 1
        return self.say(200, ANSWER)

    def say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    stub = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{stub.server_port}"
    stub.shutdown()
    stub.server_close()


async def test_answers_come_in_order_and_a_few_at_once(url: str) -> None:
    async with connected(url, concurrency=3) as server:
        answers = await gather((server.complete(MESSAGES, mode="latent") for _ in range(12)), "asking")
    assert Stub.most == 3
    assert [(a.replies, a.tokens, a.route["mode"]) for a in answers] == [(["4"], 5, "latent")] * 12
    assert all(0.05 <= a.seconds < 2 for a in answers)  # without the wait for a turn


async def test_a_broken_connection_is_asked_again(url: str) -> None:
    Stub.broken = 2
    async with connected(url, concurrency=1) as server:
        assert (await server.complete(MESSAGES)).replies == ["4"]
    assert Stub.broken == 0


async def test_what_goes_wrong_is_one_sentence(url: str) -> None:
    with pytest.raises(StageError, match="refused a request: there is no mode wrong"):
        async with connected(url, 1) as server:
            await server.complete(MESSAGES, mode="wrong")
    with pytest.raises(StageError, match="Is the server running"):
        async with connected("http://127.0.0.1:9", 1):
            pass
