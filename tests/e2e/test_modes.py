"""Every mode as a client of OpenAI's API uses it, against the real server."""

import json
import socket
import time
from itertools import product
from typing import Any

import httpx
import openai
import pytest

from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase
from tests.conftest import NUM_LATENTS

MODES = ("direct", "latent", "latent+explicit", "explicit")
TOOL = {
    "type": "function",
    "function": {
        "name": "count",
        "description": "Count things.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"n": {"enum": [1, 2, 3]}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"n": {"enum": [1, 2, 3]}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}


def ask(client: openai.OpenAI, question: Question | str, mode: str, **options: Any) -> Any:
    text = question if isinstance(question, str) else question.question
    options = {"temperature": 0, "model": "demo"} | options
    extra = options.pop("extra_body", {}) | {"mode": mode}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], extra_body=extra, **options)


def collect(stream: Any) -> tuple[list[Any], dict[int, str], dict[int, str]]:
    """(chunks, content per choice, reasoning per choice)."""
    chunks = list(stream)
    content: dict[int, str] = {}
    reasoning: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            content[choice.index] = content.get(choice.index, "") + (choice.delta.content or "")
            reasoning[choice.index] = reasoning.get(choice.index, "") + (getattr(choice.delta, "reasoning", None) or "")
    return chunks, content, reasoning


@pytest.mark.parametrize("mode", MODES)
def test_streaming_and_whole_answers_agree(client: openai.OpenAI, asked: list[Question], mode: str) -> None:
    whole = ask(client, asked[0], mode)
    message = whole.choices[0].message
    assert message.content
    assert bool(message.reasoning) == ("explicit" in mode)
    assert whole.choices[0].finish_reason == "stop"
    chunks, content, reasoning = collect(ask(client, asked[0], mode, stream=True, stream_options={"include_usage": True}))
    assert content[0] == message.content
    assert reasoning[0] == (message.reasoning or "")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for last in (whole, chunks[-1]):
        assert last.route["mode"] == last.route["requested"] == mode
        assert last.route["latent_tokens"] == (NUM_LATENTS if "latent" in mode else 0)


@pytest.mark.parametrize(("mode", "stream", "n"), list(product(MODES, (False, True), (1, 3))))
def test_sampling_n_answers_with_logprobs(
    client: openai.OpenAI, asked: list[Question], mode: str, stream: bool, n: int
) -> None:
    options = {"n": n, "temperature": 0.8, "seed": 5, "logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    if stream:
        chunks, content, reasoning = collect(ask(client, asked[1], mode, stream=True, **options))
        assert set(content) == set(range(n))
        assert all(content[i] or reasoning[i] for i in range(n))
        assert any(choice.logprobs for chunk in chunks for choice in chunk.choices)
        return
    answer = ask(client, asked[1], mode, **options)
    assert [choice.index for choice in answer.choices] == list(range(n))
    for choice in answer.choices:
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content)
    again = ask(client, asked[1], mode, **options)
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]


@pytest.mark.parametrize(("mode", "stream"), list(product(MODES, (False, True))))
def test_a_named_tool_is_called(client: openai.OpenAI, asked: list[Question], mode: str, stream: bool) -> None:
    options: dict[str, Any] = {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "count"}},
        "max_tokens": 600,
        "frequency_penalty": 2.0
        if "explicit" not in mode
        else 0.3,  # or a model that has never seen JSON fills it with line breaks
    }
    if stream:
        chunks, _, _ = collect(ask(client, asked[2], mode, stream=True, **options))
        calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
        name, arguments = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
    else:
        (call,) = ask(client, asked[2], mode, **options).choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name == "count"
    assert json.loads(arguments)["n"] in (1, 2, 3)


@pytest.mark.parametrize(("mode", "stream"), list(product(MODES, (False, True))))
def test_structured_output_is_enforced_after_thinking(
    client: openai.OpenAI, asked: list[Question], mode: str, stream: bool
) -> None:
    if stream:
        _, content, _ = collect(ask(client, asked[3], mode, stream=True, response_format=SCHEMA, max_tokens=900))
        text = content[0]
    else:
        text = ask(client, asked[3], mode, response_format=SCHEMA, max_tokens=900).choices[0].message.content
    assert json.loads(text)["n"] in (1, 2, 3)


@pytest.mark.parametrize("mode", MODES)
def test_stop_and_max_tokens(client: openai.OpenAI, asked: list[Question], mode: str) -> None:
    full = ask(client, asked[4], mode)
    short = ask(client, asked[4], mode, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    word = full.choices[0].message.content.split()[1]  # "has"
    stopped = ask(client, asked[4], mode, stop=[f" {word}"])
    assert f" {word}" not in (stopped.choices[0].message.content or "")


@pytest.mark.parametrize("mode", MODES)
def test_usage_counts_the_clients_tokens(client: openai.OpenAI, base: FrozenBase, asked: list[Question], mode: str) -> None:
    answer = ask(client, asked[5], mode)
    usage, message = answer.usage, answer.choices[0].message
    assert usage.prompt_tokens == len(base.prompt_ids([{"role": "user", "content": asked[5].question}]))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.latent_tokens == (NUM_LATENTS if "latent" in mode else 0)
    thinking = len(base.tokenizer.encode(message.reasoning)) if message.reasoning else 0
    assert abs(usage.completion_tokens_details.reasoning_tokens - thinking) <= 1


def test_multi_turn_conversations(client: openai.OpenAI, asked: list[Question]) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You solve word problems."},
        {"role": "user", "content": asked[6].question},
        {"role": "assistant", "content": asked[6].reply, "reasoning_content": asked[6].chain},
        {"role": "user", "content": asked[7].question},
    ]
    for mode in MODES:
        answer = client.chat.completions.create(model="demo", messages=messages, temperature=0, extra_body={"mode": mode})
        assert answer.choices[0].message.content


def test_auto_says_why(client: openai.OpenAI, asked: list[Question]) -> None:
    chosen, calibration = set(), client.get("/router", cast_to=httpx.Response).json()["calibration"]
    for question in asked[:24]:
        route = ask(client, question, "auto").route
        assert route["requested"] == "auto"
        assert (route["score"] >= route["threshold"]) == (route["mode"] == "latent")
        is_certain = route["scores"]["latent"] >= calibration["certain_from"]  # then the answer is not checked
        kept = "worth_it" if is_certain else "answer_confident"
        assert route["reason"] == (kept if route["mode"] == "latent" else "answer_doubtful")
        chosen.add(route["mode"])
    assert chosen == {"latent", calibration["thinking"]}


def test_the_number_of_latents_can_be_chosen(client: openai.OpenAI, asked: list[Question]) -> None:
    for count in (1, 64, 256):
        route = ask(client, asked[0], "latent", extra_body={"num_latent_tokens": count}).route
        assert route["latent_tokens"] == count
    for count in (0, 257, "many"):
        with pytest.raises(openai.BadRequestError, match="num_latent_tokens"):
            ask(client, asked[0], "latent", extra_body={"num_latent_tokens": count})


def test_as_few_latents_as_suffice(client: openai.OpenAI, asked: list[Question]) -> None:
    """Easy questions get fewer than hard ones, and what was expected of each number stands in the route."""
    easy, hard = ([q for q in asked if low <= q.steps <= high][:8] for low, high in ((1, 1), (7, 8)))
    chosen = {}
    for name, some in (("easy", easy), ("hard", hard)):
        routes = [ask(client, question, "latent", extra_body={"num_latent_tokens": "auto"}).route for question in some]
        chosen[name] = sum(route["latent_tokens"] for route in routes) / len(routes)
        for route in routes:
            expected = {int(number): correct for number, correct in route["latent_by_n"].items()}
            enough = [number for number, correct in expected.items() if correct >= route["scores"]["latent"] - 0.005]
            assert route["latent_tokens"] == min([*enough, NUM_LATENTS])
    assert chosen["easy"] < chosen["hard"] <= NUM_LATENTS
    with pytest.raises(openai.BadRequestError, match='whole number, or "auto"'):
        ask(client, easy[0], "latent", extra_body={"num_latent_tokens": "few"})


def test_aliases_headers_and_precedence(server: str, client: openai.OpenAI, asked: list[Question]) -> None:
    assert {"demo", *(f"demo:{mode}" for mode in (*MODES, "soft", "auto"))} == {model.id for model in client.models.list()}
    messages: Any = [{"role": "user", "content": asked[0].question}]
    raw = client.chat.completions.with_raw_response.create(model="demo:latent", messages=messages, temperature=0)
    assert raw.headers["X-Reasoning-Mode"] == "latent"
    assert 0 <= float(raw.headers["X-Reasoning-Score"]) <= 1
    by_header = client.chat.completions.with_raw_response.create(
        model="demo", messages=messages, extra_headers={"X-Reasoning-Mode": "direct"}, stream=True
    )
    assert by_header.headers["X-Reasoning-Mode"] == "direct"
    by_effort: Any = client.chat.completions.create(model="demo", messages=messages, reasoning_effort="none")
    assert by_effort.route["mode"] == "direct"
    body = {"model": "demo", "messages": messages}
    assert httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60).json()["route"]["requested"] == "auto"


def test_the_other_endpoints_have_modes_too(server: str, asked: list[Question]) -> None:
    text = asked[0].question
    for mode in MODES:
        header = {"X-Reasoning-Mode": mode}
        response = httpx.post(f"{server}/v1/responses", json={"model": "demo", "input": text}, headers=header, timeout=60)
        assert response.status_code == 200, response.text
        assert response.headers["X-Reasoning-Mode"] == response.json()["route"]["mode"] == mode
        kinds = {item["type"] for item in response.json()["output"]}
        assert ("reasoning" in kinds) == ("explicit" in mode)
        anthropic = {"model": "demo", "max_tokens": 600, "messages": [{"role": "user", "content": text}]}
        response = httpx.post(f"{server}/v1/messages", json=anthropic, headers=header, timeout=60)
        assert response.status_code == 200, response.text
        assert response.headers["X-Reasoning-Mode"] == mode
    plain = httpx.post(f"{server}/v1/completions", json={"model": "demo", "prompt": "Ann has", "max_tokens": 4}, timeout=60)
    assert plain.status_code == 200
    assert "route" not in plain.json()
    tokens = httpx.post(f"{server}/tokenize", json={"model": "demo", "prompt": text}, timeout=60)
    assert tokens.json()["count"] > 10


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"mode": "explicit", "reasoning_effort": "none"}, "mode"),
        ({"mode": "quick"}, "mode"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"chat_template": "x"}, "chat_template"),
        ({"mode": "latent", "continue_final_message": True, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"mode": "latent", "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"vllm_xargs": {"latentserve": 1}}, "vllm_xargs"),
    ],
)
def test_refusals_have_openais_shape(server: str, body: dict[str, Any], param: str) -> None:
    request = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]} | body
    response = httpx.post(f"{server}/v1/chat/completions", json=request, timeout=60)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (400, param)


def test_reserved_tokens_in_a_prompt_are_refused(server: str, base: FrozenBase) -> None:
    reserved = base.tokenizer.convert_tokens_to_ids("<|latent|>")
    chat = {"model": "demo", "messages": [{"role": "user", "content": "Hello <|latent|>"}]}
    bias = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "logit_bias": {str(reserved): 100}}
    tokens = {"model": "demo", "prompt": [5, reserved, 6], "max_tokens": 2}
    for path, body in (("chat/completions", chat), ("chat/completions", bias), ("completions", tokens)):
        response = httpx.post(f"{server}/v1/{path}", json=body, timeout=60)
        assert response.status_code == 400, response.text
        assert "reserved" in response.json()["error"]["message"]


def test_malformed_requests_get_vllms_errors(server: str) -> None:
    assert (
        httpx.post(f"{server}/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}).status_code
        == 400
    )
    missing = httpx.post(
        f"{server}/v1/chat/completions", json={"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
    )
    assert missing.status_code == 404
    long = httpx.post(
        f"{server}/v1/chat/completions",
        json={"model": "demo", "mode": "latent", "messages": [{"role": "user", "content": "a b " * 4000}]},
    )
    assert long.status_code == 400


@pytest.mark.parametrize("mode", [*MODES, "auto"])
def test_penalties_do_not_leak_between_requests(client: openai.OpenAI, asked: list[Question], mode: str) -> None:
    options = {"frequency_penalty": 1.5, "presence_penalty": 1.0, "max_tokens": 40, "extra_body": {"repetition_penalty": 1.3}}
    first = ask(client, asked[8], mode, **options).choices[0].message
    ask(client, asked[9], mode, **options)
    ask(client, asked[10], "explicit", max_tokens=60)
    again = ask(client, asked[8], mode, **options).choices[0].message
    assert (again.content, again.reasoning) == (first.content, first.reasoning)


def metric(server: str, name: str, **labels: str) -> float:
    total = 0.0
    for line in httpx.get(f"{server}/metrics", timeout=30).text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def settled_tokens(server: str) -> float:
    """Tokens generated so far, once nothing is generated any more."""
    before, now = -1.0, metric(server, "vllm:generation_tokens_total")
    while now != before:
        time.sleep(0.5)
        before, now = now, metric(server, "vllm:generation_tokens_total")
    return now


@pytest.mark.parametrize("mode", [*MODES, "auto"])
def test_a_client_that_leaves_stops_the_work(server: str, mode: str, asked: list[Question]) -> None:
    body = {"model": "demo", "mode": mode, "stream": True, "ignore_eos": True, "max_tokens": 1500}
    body |= {"messages": [{"role": "user", "content": asked[11].question}]}
    before = settled_tokens(server)
    payload = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", int(server.rsplit(":", 1)[1]))) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}"
        )
        connection.sendall(f"{head}\r\n\r\n".encode() + payload)
        received = b""
        while b"data: " not in received:
            received += connection.recv(4096)
    assert settled_tokens(server) - before < 1000  # of the 1,500 that were asked for
    assert metric(server, "vllm:num_requests_running") == 0


def test_the_answer_reads_the_question_from_the_prefix_cache(server: str, client: openai.OpenAI, asked: list[Question]) -> None:
    text = f"This question is asked for the first time. {asked[12].question} {asked[13].question}"
    before = metric(server, "vllm:prefix_cache_hits_total")
    usage = ask(client, text, "latent", n=2, temperature=1).usage  # read first, then answered twice
    full_blocks = usage.prompt_tokens // 32 * 32
    assert full_blocks >= 64
    assert metric(server, "vllm:prefix_cache_hits_total") - before >= 0.9 * full_blocks
    assert usage.prompt_tokens_details.cached_tokens == 0, "nobody had asked this before"


def test_metrics_count_modes_and_stages(server: str, client: openai.OpenAI, asked: list[Question]) -> None:
    def read(mode: str) -> dict[str, float]:
        stages = ("gateway", "queue", "read", "discarded", "answer", "respond")
        return {
            "requests": metric(server, "latentserve_requests_total", mode=mode, requested=mode),
            "seconds": metric(server, "latentserve_request_seconds_sum", mode=mode, requested=mode),
            "stages": sum(metric(server, "latentserve_stage_seconds_sum", mode=mode, stage=stage) for stage in stages),
            "reads": metric(server, "latentserve_stage_seconds_sum", mode=mode, stage="read"),
            "network": metric(server, "latentserve_network_seconds_sum", mode=mode),
            "first": metric(server, "latentserve_time_to_first_token_seconds_count", mode=mode, requested=mode),
            "latent": metric(server, "latentserve_tokens_total", mode=mode, kind="latent"),
            "thinking": metric(server, "latentserve_tokens_total", mode=mode, kind="thinking"),
            "answer": metric(server, "latentserve_tokens_total", mode=mode, kind="answer"),
        }

    for mode in ("latent", "explicit"):
        before = read(mode)
        usage = ask(client, asked[14], mode).usage
        list(ask(client, asked[14], mode, stream=True))
        new = {name: value - before[name] for name, value in read(mode).items()}
        assert (new["requests"], new["first"]) == (2, 1)
        assert new["thinking"] + new["answer"] == 2 * usage.completion_tokens
        assert new["stages"] == pytest.approx(new["seconds"], rel=0.05)
        if mode == "latent":
            assert 0 < new["network"] < new["reads"]
            assert (new["latent"], new["thinking"]) == (2 * NUM_LATENTS, 0)
        else:
            assert 0 <= new["thinking"] - 2 * usage.completion_tokens_details.reasoning_tokens <= 4  # the think tags


def test_metrics_count_failures_by_type(server: str, asked: list[Question]) -> None:
    before = metric(server, "latentserve_failures_total", type="invalid")
    assert (
        httpx.post(f"{server}/v1/chat/completions", json={"model": "demo", "mode": "often", "messages": []}).status_code == 400
    )
    messages = [{"role": "user", "content": asked[0].question}]
    bad = {"model": "demo", "mode": "latent", "messages": messages, "num_latent_tokens": 999}
    assert httpx.post(f"{server}/v1/chat/completions", json=bad).status_code == 400
    assert metric(server, "latentserve_failures_total", type="invalid") == before + 2
    assert metric(server, "latentserve_failures_total", type="invalid", requested="latent") > 0


def test_health_and_readiness(server: str) -> None:
    assert httpx.get(f"{server}/health").status_code == 200
    ready = httpx.get(f"{server}/ready").json()
    assert ready["ready"]
    assert ready["parity"] > 0.99
    assert set(ready["warm_modes"]) == {"auto", "latent", "latent+explicit", "explicit", "direct", "soft"}
