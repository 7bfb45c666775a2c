"""A server that is small and has keys: what is refused, demoted or cut, and that nobody else notices."""

import asyncio
import hashlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reasoning_net.demo.questions import Question
from server.http.routes import PROTECTED
from tests.conftest import running_server

CAPACITY, QUEUE = 4, 4
CHAT = "/v1/chat/completions"
SECONDS = 2.5  # enough for a first token, and for no long chain
LIMITS = {
    "free": "",
    "other": "",
    "two": "requests_per_minute: 2",
    "frugal": "tokens_per_minute: 1",
    "little": "thinking_tokens_per_minute: 1",
    "single": "concurrent_explicit: 1",
    "cut": "max_thinking_tokens: 20",
}
ROUTES = sorted({*PROTECTED, "/v1/anything", "/v1/chat/completions/", "/docs/x", "/../v1/models"})


def lines(limits: dict[str, str]) -> str:
    keys = (
        f"- {{name: {name}, sha256: '{hashlib.sha256(name.encode()).hexdigest()}', {limit}}}" for name, limit in limits.items()
    )
    return "\n".join(("keys:", *keys)) + "\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    file.write_text(lines(LIMITS))
    return file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[str]:
    settings = {"API_KEYS_FILE": str(keys), "CLIENT_TIMEOUT_SECONDS": "1.5", "MAX_BODY_MIB": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"LATENTSERVE_{name}", value)
        flags = ("--max-num-seqs", str(CAPACITY), "--max-num-queued-reqs", str(QUEUE))
        with running_server(tmp_path_factory.mktemp("small") / "log.txt", *flags) as url:
            yield url


@pytest.fixture
async def ask(small: str) -> AsyncIterator[Callable[..., Awaitable[httpx.Response]]]:
    async with httpx.AsyncClient(base_url=small, timeout=120) as client:

        async def post(question: Question, key: str = "free", path: str = CHAT, **body: Any) -> httpx.Response:
            messages = [{"role": "user", "content": question.question}]
            body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 24} | body
            body = {name: value for name, value in body.items() if value is not None}
            return await client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

        yield post


async def gauge(url: str, name: str, **labels: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def until(url: str, name: str, holds: Callable[[float], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds(value := await gauge(url, name)):
        assert time.monotonic() < deadline, f"{name} stays at {value}"
        await asyncio.sleep(0.02)


def error(response: httpx.Response) -> dict[str, Any]:
    return response.json()["error"]


LONG = {"mode": "explicit", "max_tokens": 300, "ignore_eos": True}


async def test_a_burst_is_answered_or_refused_and_counted(small: str, ask: Any, asked: list[Question]) -> None:
    async def counts() -> list[float]:
        refused = await gauge(small, "latentserve_failures_total", type="overloaded")
        return [await gauge(small, "latentserve_requests_total"), refused]

    before = await counts()
    modes = ({"mode": "direct"}, {"mode": "latent"}, LONG, {"mode": "auto"})
    burst = [ask(asked[i], **modes[i % 4], **({"stream": True} if i % 8 > 3 else {})) for i in range(4 * (CAPACITY + QUEUE))]
    responses = await asyncio.gather(*burst)
    refused = [response for response in responses if response.status_code == 429]
    admitted = [response for response in responses if response.status_code == 200]
    assert len(refused) + len(admitted) == len(responses)
    assert len(admitted) >= CAPACITY + QUEUE
    assert len(refused) >= CAPACITY
    assert all(r.headers["x-reject-reason"] == "queue_full" and int(r.headers["retry-after"]) >= 1 for r in refused)
    assert all('"error"' not in response.text for response in admitted)
    await until(small, "latentserve_requests_in_flight", lambda value: value == 0)
    assert [now - then for now, then in zip(await counts(), before, strict=True)] == [len(admitted), len(refused)]


async def test_under_load_auto_does_without_a_chain_and_long_chains_share_places(
    small: str, ask: Any, asked: list[Question]
) -> None:
    running = [asyncio.ensure_future(ask(question, **LONG | {"max_tokens": 1500})) for question in asked[: CAPACITY + 2]]
    await until(small, "latentserve_requests_in_flight", lambda value: value == CAPACITY + 2)
    await until(small, "vllm:num_requests_running", lambda value: value == CAPACITY // 2)
    response = await ask(asked[10], mode="auto", router={"policy": "always-explicit"})
    route = response.json()["route"]
    assert (route["mode"], route["reason"]) == ("latent", "demoted_load")
    assert await gauge(small, "latentserve_demotions_total", reason="demoted_load") >= 1
    assert not any(task.done() for task in running), "it did not wait for those that were there before"
    for task in running:
        task.cancel()
    await until(small, "latentserve_requests_in_flight", lambda value: value == 0)
    await until(small, "vllm:num_requests_running", lambda value: value == 0)


async def loads(url: str) -> tuple[float, float, float]:
    """(running, waiting, in flight), of one look."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples if not s.labels}
    running, waiting, in_flight = (found[f"latentserve_requests_{name}"] for name in ("running", "waiting", "in_flight"))
    return running, waiting, in_flight


async def test_waiting_includes_who_waits_before_the_engine(small: str, ask: Any, asked: list[Question]) -> None:
    """What an endpoint picker reads; of these vLLM's own gauge knows two that run, and none that waits."""
    running = [asyncio.ensure_future(ask(asked[i], **LONG | {"max_tokens": 1500})) for i in range(4)]
    await until(small, "latentserve_requests_waiting", lambda value: value == 4 - CAPACITY // 2)
    assert await loads(small) == (CAPACITY // 2, 4 - CAPACITY // 2, 4)
    assert await gauge(small, "vllm:num_requests_waiting") == 0
    assert await gauge(small, "latentserve_requests_held") == 4 - CAPACITY // 2
    for task in running:
        task.cancel()
    await until(small, "latentserve_requests_in_flight", lambda value: value == 0)
    assert await loads(small) == (0, 0, 0)
    await until(small, "vllm:kv_cache_usage_perc", lambda value: value == 0)


async def test_a_latent_answer_counts_once_though_it_is_two_engine_requests(
    small: str, ask: Any, asked: list[Question]
) -> None:
    finished = await gauge(small, "vllm:request_success_total")
    burst = [asyncio.ensure_future(ask(asked[i], mode="latent", logprobs=True)) for i in range(CAPACITY + QUEUE)]
    seen = []
    while not all(one.done() for one in burst):
        seen.append(await loads(small))
    assert {response.status_code for response in await asyncio.gather(*burst)} == {200}
    assert all(r + w <= CAPACITY + QUEUE + 1 for r, w, _ in seen), "a look is not at one instant"
    assert await gauge(small, "vllm:request_success_total") - finished == 2 * (CAPACITY + QUEUE)


@pytest.mark.parametrize(
    ("path", "field"),
    [(CHAT, "messages"), ("/v1/responses", "input"), ("/v1/completions", "prompt")],
)
async def test_a_deadline_ends_an_answer(small: str, ask: Any, asked: list[Question], path: str, field: str) -> None:
    """Before the first byte as a 504, after it as an event; the engine's work ends with it."""
    question = "Write about pens. " * 20
    given = {field: [{"role": "user", "content": question}] if field == "messages" else question, "timeout_seconds": SECONDS}
    body = LONG | {"max_tokens": 1800, "max_output_tokens": 1800, "messages": None} | given
    whole = await ask(asked[0], path=path, **body)
    assert (whole.status_code, f"{SECONDS} seconds" in whole.text) == (504, True), whole.text
    stream = await ask(asked[0], path=path, stream=True, **body)
    assert (stream.status_code, f"{SECONDS} seconds" in stream.text[-300:]) == (200, True), stream.text[-300:]
    assert stream.text.count("data:") > 3
    await until(small, "vllm:num_requests_running", lambda value: value == 0)


@pytest.mark.parametrize("value", [0, -1, "3", True, [1]])
async def test_a_deadline_is_a_number(ask: Any, asked: list[Question], value: Any) -> None:
    response = await ask(asked[0], timeout_seconds=value)
    assert (response.status_code, error(response)["param"]) == (400, "timeout_seconds")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 4000}, "n"),
        ({"n": 129, "mode": "direct"}, "n"),
        ({"stop": ["x" * 5000]}, "stop"),
        ({"stop_token_ids": list(range(5000))}, "stop_token_ids"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
        ({"request_id": "x" * 200}, "x-request-id"),
    ],
)
async def test_what_multiplies_work_is_bounded(ask: Any, asked: list[Question], body: dict[str, Any], param: str) -> None:
    response = await ask(asked[0], **body)
    assert (response.status_code, error(response)["param"]) == (400, param), response.text


async def test_many_prompts_are_bounded(ask: Any, asked: list[Question]) -> None:
    response = await ask(asked[0], path="/v1/completions", prompt=["x"] * 200)
    assert (response.status_code, error(response)["param"]) == (400, "prompt")


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/completions", "/v1/messages", "/v1/route", "/tokenize"])
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"model": "demo", "x": "' + b"x" * 2**20 + b'"}', {}, 413),
        (b"{}", {"Content-Encoding": "gzip"}, 415),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b'{"model": "demo", "max_tokens": 1, "max_tokens": 9999}', {}, 400),
        (b'{"model": "demo", "temperature": NaN}', {}, 400),
        (b'{"model": "demo", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", {}, 400),
    ],
    ids=["large", "compressed", "no json", "twice", "nan", "deep"],
)
def test_bodies(small: str, path: str, content: bytes, headers: dict[str, str], status: int) -> None:
    headers = {"Authorization": "Bearer free", "Content-Type": "application/json"} | headers
    response = httpx.post(f"{small}{path}", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert "message" in response.json()["error"]


def test_a_body_without_end_and_one_that_does_not_come(small: str) -> None:
    host, _, port = small.removeprefix("http://").partition(":")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer free\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        slow.settimeout(30)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    with socket.create_connection((host, int(port))) as endless:
        endless.settimeout(30)
        endless.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with pytest.raises(OSError), pytest.MonkeyPatch.context():  # noqa: PT011, PT012
            for _ in range(1000):
                endless.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                if endless.recv(4096).startswith(b"HTTP/1.1 413"):
                    raise OSError


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic free", "Bearer " + "x" * 30_000, "Bearer fr\u00e9e"])
def test_keys_that_are_none(small: str, header: str) -> None:
    response = httpx.get(f"{small}/v1/models", headers={"Authorization": header.encode("latin-1")})
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "AuthenticationError"


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_that_is_not_public_wants_a_key(small: str, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        assert httpx.request(method, f"{small}{path}").status_code == 401, method


def test_keys_are_rotated_without_a_restart(small: str, keys: Path) -> None:
    def status(key: str) -> int:
        return httpx.get(f"{small}/v1/models", headers={"x-api-key": key}).status_code

    assert (status("free"), status("new")) == (200, 401)
    keys.write_text(lines(LIMITS | {"new": ""}))
    os.utime(keys, (time.time() + 5, time.time() + 5))
    assert (status("free"), status("new")) == (200, 200)


async def test_limits_of_a_key(small: str, ask: Any, asked: list[Question]) -> None:
    answers = [await ask(asked[0], key="two", mode="direct") for _ in range(4)]
    assert answers[0].status_code == 200
    refusals = [answer for answer in answers if answer.status_code == 429]
    assert refusals
    assert all(refusal.elapsed.total_seconds() >= 1 for refusal in refusals), "asking again at once does not pay"
    assert (await ask(asked[0], key="little", mode="explicit")).status_code == 200  # all of the minute, and more
    refused = await ask(asked[0], key="little", mode="explicit")
    if refused.status_code == 200:  # a minute has just begun
        refused = await ask(asked[0], key="little", mode="explicit")
    assert refused.status_code == 429
    assert refused.headers["x-reject-reason"] == "thinking_tokens_per_minute"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    demoted = await ask(asked[1], key="little", mode="auto", router={"policy": "always-explicit"})
    route = demoted.json()["route"]
    assert (route["mode"], route["reason"]) == ("latent", "demoted_thinking_tokens_per_minute")


async def test_an_explanation_is_one_answer_and_its_changed_questions_are_paid_for(
    small: str, ask: Any, asked: list[Question]
) -> None:
    answers = [await ask(question, path="/v1/explain") for question in asked[:12]]
    assert all(answer.status_code == 200 for answer in answers)
    assert any(answer.json()["changed_tokens"] for answer in answers)
    for key, reason in (("frugal", "tokens_per_minute"), ("two", "requests_per_minute")):
        refused = [await ask(asked[0], key=key, path="/v1/explain") for _ in range(4)]
        assert any(answer.status_code == 429 and answer.headers["x-reject-reason"] == reason for answer in refused)
    burst = await asyncio.gather(*(ask(question, path="/v1/explain") for question in asked[: 4 * (CAPACITY + QUEUE)]))
    assert {answer.status_code for answer in burst} == {200, 429}
    await until(small, "latentserve_requests_in_flight", lambda value: value == 0)


async def test_chains_at_once(small: str, ask: Any, asked: list[Question]) -> None:
    first = asyncio.ensure_future(ask(asked[0], key="single", **LONG))
    await until(small, "vllm:num_requests_running", lambda value: value == 1)
    second = await ask(asked[1], key="single", mode="explicit", stream=True)
    assert (second.status_code, second.headers["x-reject-reason"]) == (429, "concurrent_explicit")
    assert (await ask(asked[1], key="free", mode="explicit")).status_code == 200
    assert (await first).status_code == 200
    await until(small, "latentserve_requests_in_flight", lambda value: value == 0)  # its place is free
    assert (await ask(asked[1], key="single", mode="explicit")).status_code == 200


async def test_a_client_that_does_not_read_is_cut_off(small: str, asked: list[Question]) -> None:
    """Its answer is no longer written, and holds no place."""
    options = {"mode": "direct", "n": 4, "logprobs": True, "top_logprobs": 20, "ignore_eos": True, "max_tokens": 1200}
    message = {"role": "user", "content": asked[0].question}
    body = json.dumps({"model": "demo", "messages": [message], "stream": True} | options).encode()
    fields = f"Host: a\r\nAuthorization: Bearer free\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", int(small.rpartition(":")[2])))
        unread.sendall(f"POST {CHAT} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        await until(small, "latentserve_requests_in_flight", lambda value: value == 4)
        generated = await gauge(small, "vllm:generation_tokens_total")
        await until(small, "latentserve_requests_in_flight", lambda value: value == 0)
        await until(small, "vllm:num_requests_running", lambda value: value == 0)
        assert await gauge(small, "vllm:generation_tokens_total") - generated < 4 * 1200


async def test_a_chain_that_is_cut_is_answered(ask: Any, asked: list[Question]) -> None:
    hard = next(question for question in asked if question.steps >= 6)
    response = await ask(hard, key="cut", mode="explicit", max_tokens=400)
    message, usage = response.json()["choices"][0]["message"], response.json()["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] <= 22
    assert message["content"].strip()


@pytest.mark.parametrize("mode", ["explicit", "direct", "latent", "auto"])
async def test_no_key_finds_what_another_left_in_the_prefix_cache(ask: Any, asked: list[Question], mode: str) -> None:
    async def cached(key: str, **body: Any) -> int:
        answer = await ask(question, key=key, mode=mode, **body)
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    question = replace(asked[20], question=f"In {mode} mode. {asked[20].question}")
    assert await cached("free") == 0
    assert await cached("free") > 0
    assert await cached("other") == 0
    assert await cached("free", cache_salt="x") == 0
    assert await cached("other", cache_salt="x") == 0
    assert await cached("other") > 0


async def test_an_experimental_mode_is_offered_only_where_it_was_asked_for(
    ask: Callable[..., Awaitable[httpx.Response]], asked: list[Question]
) -> None:
    refused = await ask(asked[0], mode="soft")
    assert refused.status_code == 400
    assert "--soft-thinking" in refused.json()["error"]["message"]
