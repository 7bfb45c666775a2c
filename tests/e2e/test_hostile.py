"""Clients that mean harm, or leave, or send what nobody should: no other answer changes, and each gets a 4xx that says why."""

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from reasoning_net.bundle import Bundle
from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase
from tests.conftest import NUM_LATENTS
from tests.e2e.test_modes import metric

ATTEMPTS = 500  # of a client that wants to change other clients' answers
CHAT = "/v1/chat/completions"


@pytest.fixture
def http(server: str) -> Any:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


def messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.question}]


def answers(http: httpx.Client, asked: list[Question], mode: str, **options: Any) -> list[Any]:
    """Greedy answers with their log-probabilities."""
    body = {"model": "demo", "mode": mode, "temperature": 0, "logprobs": True} | options
    choices = [http.post(CHAT, json=body | {"messages": messages(q)}).json()["choices"][0] for q in asked]
    return [[(token["token"], token["logprob"]) for token in choice["logprobs"]["content"]] for choice in choices]


def same(before: list[Any], after: list[Any]) -> bool:
    """Token by token, with log-probabilities that differ by no more than a batch's arithmetic."""
    pairs = [pair for answer in zip(before, after, strict=True) for pair in zip(*answer, strict=True)]
    return all(one[0] == other[0] and abs(one[1] - other[1]) < 2e-3 for one, other in pairs)


async def post_all(server: str, path: str, bodies: list[dict[str, Any]], **headers: str) -> list[int]:
    """Status codes of all bodies, sent at once."""
    # A connection each: one that is kept may be closed by a busy server just as it is used again.
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server, timeout=300, limits=limits, headers=headers) as client:
        responses = await asyncio.gather(*(client.post(path, json=body) for body in bodies))
    return [response.status_code for response in responses]


@pytest.mark.timeout(600)
async def test_forced_placeholders_change_no_answer(
    server: str, http: httpx.Client, base: FrozenBase, bundle: Bundle, asked: list[Question]
) -> None:
    """A generated placeholder would leave its KV under the hash of the latent layout."""
    victims = asked[20:32]
    before = answers(http, victims, "latent", cache_salt="other")  # nothing of it is in the cache that is attacked
    layout = bundle.manifest.layout.token_ids(base.tokenizer)
    assert layout.placeholder is not None
    others = {str(i): -100 for i in range(base.model.config.vocab_size) if i != layout.placeholder}
    forced: list[dict[str, Any]] = [
        {"logit_bias": others},
        {"logit_bias": others | {str(layout.placeholder): 100}},
        {"allowed_token_ids": [layout.placeholder]},
        {"structured_outputs": {"regex": r"(<\|latent\|>){16}"}},
    ]
    bodies = []
    for attempt in range(ATTEMPTS):
        ids = base.prompt_ids(messages(victims[attempt % len(victims)]))
        head = {"model": "demo", "prompt": [*ids, *layout.before_latents], "max_tokens": 18, "ignore_eos": True}
        bodies.append(head | forced[attempt % len(forced)])
    codes = await post_all(server, "/v1/completions", bodies)
    assert set(codes) <= {200, 400}
    assert codes.count(400) >= ATTEMPTS // 2
    assert same(before, answers(http, victims, "latent"))


def not_finite(rows: int, hidden_size: int) -> str:
    buffer = io.BytesIO()
    torch.save(torch.full((rows, hidden_size), float("nan")), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def test_embeddings_enter_by_no_route(http: httpx.Client, base: FrozenBase, asked: list[Question]) -> None:
    embeds = not_finite(8, base.hidden_size)
    part = [{"role": "user", "content": [{"type": "prompt_embeds", "prompt_embeds": embeds}]}]
    before = answers(http, asked[:4], "direct")
    for path, body in (
        (CHAT, {"messages": part}),
        (CHAT, {"messages": messages(asked[0]), "prompt_embeds": embeds}),
        ("/v1/completions", {"prompt_embeds": embeds}),
        ("/v1/completions", {"prompt_embeds": [embeds], "mode": "explicit"}),
        ("/v1/responses", {"input": part}),
        ("/v1/messages", {"messages": part, "max_tokens": 4}),
        ("/v1/route", {"messages": part}),
        ("/tokenize", {"messages": part}),
    ):
        response = http.post(path, json={"model": "demo"} | body)
        assert response.status_code == 400, (path, response.text)
    assert same(before, answers(http, asked[:4], "direct"))


def test_side_doors_are_not_there(http: httpx.Client, asked: list[Question]) -> None:
    for path in (
        "/invocations", "/v1/chat/completions/batch", "/generative_scoring", "/scale_elastic_ep", "/v1/systemone", "/pause",
        "/reset_prefix_cache", "/collective_rpc", "/kv_event_sources", "/v1/load_lora_adapter",
    ):  # fmt: skip
        assert http.post(path, json={"model": "demo", "messages": messages(asked[0])}).status_code in (404, 405), path


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"thinking_token_budget": 2**70}, "thinking_token_budget"),
        ({"vllm_xargs": {"kv_transfer_params": "x"}}, "vllm_xargs"),
        ({"kv_transfer_params": {"x": 1}}, "vllm_xargs"),
        ({"reasoning_effort": ["high"]}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": []}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"max_length": 1, "truncation": True}}, "chat_template_kwargs.max_length"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
        ({"mode": "latent", "use_beam_search": 1}, "use_beam_search"),
        ({"mode": "latent", "add_generation_prompt": 0}, "add_generation_prompt"),
        ({"mode": ["latent"]}, "mode"),
        ({"mdoe": "latent"}, "mdoe"),
        ({"mode": "latent", "structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs"),
        ({"mode": "direct", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
         "structured_outputs"),
        ({"mode": "auto", "structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs"),
    ],
)  # fmt: skip
def test_refusals_name_the_parameter(http: httpx.Client, asked: list[Question], body: dict[str, Any], param: str) -> None:
    response = http.post(CHAT, json={"model": "demo", "messages": messages(asked[0]), "max_tokens": 8} | body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/completions", "/v1/route", "/tokenize"])
@pytest.mark.parametrize(
    "raw",
    ["[" * 100_000, '{"model":"demo","request_id":"\\ud800"}', '{"model":"\\udfff"}', '{"model":"demo","x":1e999}', "[]", "3"],
)
def test_bodies_that_are_none(http: httpx.Client, path: str, raw: str) -> None:
    response = http.post(path, content=raw.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": "(a+)+$"},
        {"regex": "(a|aa)+b"},
        {"regex": "((a{0,20}){0,20}){0,20}"},
        {"regex": "(?=a)"},
        {"choice": [f"{number:020}" for number in range(5000)]},
        {"json": {}},
        {"json": {"enum": [f"{number:020}" for number in range(5000)]}},
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}},
        {"json": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(400)}}},
        {"grammar": "root ::= " + " | ".join(f'"{number}"' for number in range(2000))},
    ],
    ids=lambda constraint: "-".join([*constraint, str(next(iter(constraint.values())))[:24]]),
)
async def test_patterns_that_explode_hold_nobody_up(server: str, asked: list[Question], constraint: dict[str, Any]) -> None:
    """Each is answered or refused in bounded time, and a neighbour is answered meanwhile."""
    body = {"model": "demo", "mode": "direct", "messages": messages(asked[0]), "max_tokens": 8}
    async with httpx.AsyncClient(base_url=server, timeout=60) as client:
        hostile = asyncio.ensure_future(client.post(CHAT, json=body | {"structured_outputs": constraint}))
        for _ in range(3):
            assert (await client.post(CHAT, json=body, timeout=20)).status_code == 200
        response = await hostile
        assert response.status_code in (200, 400), response.text


def test_several_prompts_have_no_one_mode(http: httpx.Client, asked: list[Question]) -> None:
    body = {"model": "demo", "prompt": [q.question for q in asked[:8]], "max_tokens": 8}
    response = http.post("/v1/completions", json=body | {"mode": "auto"})
    assert response.status_code == 400
    assert "one prompt a request" in response.json()["error"]["message"]
    assert len(http.post("/v1/completions", json=body).json()["choices"]) == 8


async def read_some(server: str, body: dict[str, Any], chunks: int, **headers: str) -> None:
    """A client that leaves after some events."""
    async with (
        httpx.AsyncClient(base_url=server, timeout=60) as client,
        client.stream("POST", CHAT, json=body | {"stream": True}, headers=headers) as stream,
    ):
        seen = 0
        async for line in stream.aiter_lines():
            seen += line.startswith("data: ")
            if seen >= chunks:
                return


@pytest.mark.timeout(600)
async def test_a_neighbour_that_leaves_changes_no_answer(server: str, http: httpx.Client, asked: list[Question]) -> None:
    """With the same request id, and with a budget whose state vLLM left behind for whoever moved into its place."""
    body = {"model": "demo", "temperature": 0, "mode": "explicit", "messages": messages(asked[33])}
    alone = http.post(CHAT, json=body).json()
    assert alone["choices"][0]["finish_reason"] == "stop"
    leaving = body | {"messages": messages(asked[34]), "thinking_token_budget": 50}
    async with httpx.AsyncClient(base_url=server, timeout=120) as client:
        for name in ("same", "same-read"):
            task = asyncio.create_task(client.post(CHAT, json=body, headers={"X-Request-Id": "same"}))
            others = [read_some(server, leaving, 4 + i, **{"X-Request-Id": name}) for i in range(3)]
            await asyncio.gather(*others)
            answer = (await task).json()
            assert answer["choices"][0]["message"] == alone["choices"][0]["message"]
            assert answer["choices"][0]["finish_reason"] == "stop"


async def test_clients_that_leave_are_no_errors_of_the_server(server: str, server_log: Path, asked: list[Question]) -> None:
    before, lines = metric(server, "latentserve_failures_total", type="engine"), len(server_log.read_text())
    async with httpx.AsyncClient(base_url=server) as client:
        for mode in ("latent", "auto", "explicit"):
            for seconds in (0.005, 0.02, 0.05):
                body = {"model": "demo", "mode": mode, "messages": messages(asked[35]), "cache_salt": f"{mode}{seconds}"}
                with pytest.raises(httpx.TimeoutException):
                    await client.post(CHAT, json=body | {"ignore_eos": True, "max_tokens": 900}, timeout=seconds)
    for _ in range(100):
        if metric(server, "vllm:num_requests_running") == 0:
            break
        await asyncio.sleep(0.1)
    assert metric(server, "vllm:num_requests_running") == 0
    assert metric(server, "latentserve_failures_total", type="engine") == before
    assert "Traceback" not in server_log.read_text()[lines:]


def test_usage_counts_what_the_client_sent(http: httpx.Client, base: FrozenBase, asked: list[Question]) -> None:
    """Whatever our own passes, latents and layouts add, on each endpoint."""
    question = asked[36]
    length = len(base.prompt_ids(messages(question)))
    for mode in ("latent", "auto", "explicit", "direct"):
        for turn in range(2):
            head = {"model": "demo", "mode": mode, "cache_salt": f"usage-{mode}"}
            usage = http.post(CHAT, json=head | {"messages": messages(question)}).json()["usage"]
            assert usage["prompt_tokens"] == length
            cached = usage["prompt_tokens_details"]["cached_tokens"] or 0
            assert 0 < cached <= length if turn else cached == 0, (mode, turn)
        anthropic = http.post("/v1/messages", json={"model": f"demo:{mode}", "max_tokens": 400, "messages": messages(question)})
        usage = anthropic.json()["usage"]
        parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        assert sum(usage.get(part) or 0 for part in parts) == length
        assert usage["input_tokens"] > 0
        usage = http.post("/v1/responses", json={"model": f"demo:{mode}", "input": question.question}).json()["usage"]
        assert usage["input_tokens"] == length
        assert usage["input_tokens_details"]["latent_tokens"] == (
            NUM_LATENTS if mode == "latent" else usage["input_tokens_details"]["latent_tokens"]
        )


def test_responses_show_their_messages_in_every_mode(http: httpx.Client, asked: list[Question]) -> None:
    for mode in ("latent", "auto", "explicit", "direct"):
        body = {"model": "demo", "mode": mode, "input": asked[37].question, "enable_response_messages": True, "temperature": 0}
        answer = http.post("/v1/responses", json=body).json()
        (message,) = answer["output_messages"]
        assert answer["output"][-1]["content"][0]["text"].strip() in message["message"]
        assert all(item["content"] for item in answer["output"])


def test_the_route_stands_in_the_last_events_only(http: httpx.Client, asked: list[Question]) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    body = {"model": "demo", "mode": "explicit", "messages": messages(asked[38]), "max_tokens": 40} | options
    text = http.post(CHAT, json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [("route" in event) for event in events] == [False] * (len(events) - 2) + [True, True]


def test_messages_are_refused_in_anthropics_shape(http: httpx.Client, asked: list[Question]) -> None:
    body = {"model": "demo", "max_tokens": 8, "messages": messages(asked[0]), "mode": "explicit"}
    response = http.post("/v1/messages", json=body | {"thinking": {"type": "disabled"}})
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert "thinking.type" in response.json()["error"]["message"]


def test_anthropics_budget_is_the_budget(http: httpx.Client, asked: list[Question]) -> None:
    body = {"model": "demo", "max_tokens": 400, "temperature": 0, "messages": messages(asked[39])}
    for tokens in (20, 40):
        answer = http.post("/v1/messages", json=body | {"thinking": {"type": "enabled", "budget_tokens": tokens}}).json()
        assert answer["route"]["mode"] == "explicit"
        thinking = next(block["thinking"] for block in answer["content"] if block["type"] == "thinking")
        assert 0 < len(thinking.split()) <= tokens


def test_openapi_knows_modes_and_routes(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas, paths = document["components"]["schemas"], document["paths"]
    assert document["info"]["title"] == "latentserve"
    for body in ("ChatCompletionRequest", "ResponsesRequest", "AnthropicMessagesRequest", "CompletionRequest"):
        assert {"mode", "num_latent_tokens", "router"} <= set(schemas[body]["properties"])
    assert {"post"} <= set(paths["/v1/route"])
    assert "requestBody" in paths["/v1/router"]["put"]
    assert "route" in paths[CHAT]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
