"""The mode of a request: precedence, contradictions, refusals."""

import json
from typing import Any

import pytest

from router.policy import Mode
from server.http.contract import (
    Terms,
    check_id,
    count_answers,
    encode,
    given_limit,
    parse,
    read_ask,
    refuse_unsupported,
    take_seconds,
    take_session,
    take_wish,
)
from server.http.errors import BadRequestError


@pytest.mark.parametrize(
    ("body", "header", "named", "implied"),
    [
        ({}, None, None, None),
        ({"mode": "latent"}, "explicit", Mode.LATENT, None),
        ({"mode": "direct", "model": "demo:explicit"}, None, Mode.DIRECT, None),
        ({"model": "demo:explicit"}, "latent", Mode.EXPLICIT, None),
        ({"model": "demo"}, "latent", Mode.LATENT, None),
        ({"model": "org/name:tag"}, None, None, None),
        ({"reasoning_effort": "none"}, None, None, Mode.DIRECT),
        ({"reasoning_effort": "minimal"}, None, None, Mode.LATENT),
        ({"reasoning_effort": "low"}, None, None, Mode.LATENT),
        ({"reasoning_effort": "medium"}, None, None, Mode.AUTO),
        ({"reasoning_effort": "high"}, None, None, Mode.EXPLICIT),
        ({"reasoning": {"effort": "high"}}, None, None, Mode.EXPLICIT),
        ({"reasoning_effort": "high", "mode": "latent"}, None, Mode.LATENT, Mode.EXPLICIT),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None, None, Mode.DIRECT),
        ({"chat_template_kwargs": {"enable_thinking": True}}, None, None, Mode.EXPLICIT),
        ({"thinking": {"type": "disabled"}}, None, None, Mode.DIRECT),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, None, None, Mode.EXPLICIT),
    ],
)
def test_precedence(body: dict[str, Any], header: str | None, named: Mode | None, implied: Mode | None) -> None:
    wish = take_wish(body, header)
    assert (wish.named, wish.implied) == (named, implied)


def test_what_would_change_the_prompt_is_taken_out() -> None:
    body = {"mode": "latent", "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True, "x": 1}}
    take_wish(body, None)
    assert body == {"chat_template_kwargs": {"x": 1}}


@pytest.mark.parametrize(
    ("path", "body", "explains", "verifies"),
    [
        ("/v1/chat/completions", {"explain": True}, True, False),
        ("/v1/messages", {"explain": True, "mode": "explicit"}, True, False),
        ("/v1/chat/completions", {"explain": False}, False, False),
        ("/v1/chat/completions", {"explain": None}, False, False),
        ("/v1/route", {"explain": True}, False, False),
        ("/v1/explain", {}, True, True),
        ("/v1/explain", {"explain": False, "stream": True}, True, True),
    ],
)
def test_who_explains(path: str, body: dict[str, Any], explains: bool, verifies: bool) -> None:
    ask = read_ask(path, body, None, Terms())
    assert (ask.explains, ask.verifies) == (explains, verifies)
    assert not {"explain", "stream"} & set(body)
    assert not verifies or ask.mode == Mode.LATENT, "not the server's default"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"explain": 1}, "explain"),
        ("/v1/completions", {"explain": True}, "explain"),
        ("/v1/chat/completions", {"explain": True, "continue_final_message": True}, "continue_final_message"),
        ("/v1/explain", {"continue_final_message": True}, "continue_final_message"),
        ("/v1/explain", {"mode": "auto"}, "mode"),
        ("/v1/explain", {"model": "demo:explicit"}, "mode"),
        ("/v1/explain", {"reasoning_effort": "high"}, "mode"),
    ],
)
def test_what_cannot_be_explained(path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        read_ask(path, body, None, Terms())
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({}, None),
        ({"reasoning_effort": "low"}, 16),
        ({"reasoning_effort": "low", "mode": "explicit"}, 16),
        ({"reasoning": {"effort": "high"}}, 64),
        ({"reasoning_effort": "medium"}, None),
        ({"reasoning_effort": "low", "thinking_token_budget": 99}, None),  # vLLM's own field, which stays in the body
        ({"reasoning_effort": "high", "thinking": {"type": "enabled", "budget_tokens": 100}}, 100),
    ],
)
def test_an_effort_has_the_operators_budget_unless_the_request_has_a_number(body: dict[str, Any], budget: int | None) -> None:
    ask = read_ask("/v1/chat/completions", body, None, Terms(effort_budgets={"low": 16, "high": 64}))
    assert ask.thinking_budget == budget


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "explicit", "reasoning_effort": "none"},
        {"mode": "direct", "reasoning_effort": "high"},
        {"mode": "explicit", "chat_template_kwargs": {"enable_thinking": False}},
        {"mode": "fast"},
        {"mode": 3},
        {"mode": ["latent"]},
        {"reasoning_effort": "enormous"},
        {"reasoning_effort": ["high"]},
        {"reasoning": {"effort": {}}},
        {"chat_template_kwargs": {"enable_thinking": []}},
        {"thinking": "enabled"},
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
    ],
)
def test_contradictions_and_unknown_values(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        take_wish(body, None)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_embeds": "AAAA"},
        {"chat_template": "{{ messages }}"},
        {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "prompt_embeds": "AAAA"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "prompt_embeds": "AAAA"}]}]},
    ],
)
def test_refusals(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        refuse_unsupported(body)


def test_ordinary_content_is_not_refused() -> None:
    refuse_unsupported(
        {
            "messages": [
                {"role": "user", "content": "prompt_embeds"},
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
            ]
        }
    )


@pytest.mark.parametrize(
    ("body", "header", "mode"),
    [
        ({}, None, "auto"),
        ({"model": "demo:auto", "reasoning_effort": "none"}, None, "direct"),
        ({"reasoning_effort": "high"}, "auto", "explicit"),
        ({"mode": "auto", "reasoning_effort": "high"}, None, "auto"),
        ({"model": "demo:auto", "reasoning_effort": "medium"}, None, "auto"),
    ],
)
def test_an_effort_narrows_an_auto_that_only_the_model_or_the_header_names(
    body: dict[str, Any], header: str | None, mode: str
) -> None:
    assert take_wish(body, header).mode(Terms()) == mode


def test_a_low_effort_is_no_demand_for_latents() -> None:
    ask = read_ask("/v1/chat/completions", {"reasoning_effort": "low"}, None, Terms(latent_available=False))
    assert ask is not None
    assert ask.mode == "auto"


def test_a_high_effort_is_no_demand_for_a_chain_where_there_is_none() -> None:
    terms = Terms(explicit_available=False)
    assert read_ask("/v1/chat/completions", {"reasoning_effort": "high"}, None, terms).mode == "auto"
    switched = {"chat_template_kwargs": {"enable_thinking": True}}
    assert read_ask("/v1/chat/completions", switched, None, terms).mode == "explicit", "which is refused, with what to do"


def test_anthropics_budget_becomes_the_budget() -> None:
    ask = read_ask("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 77}}, None, Terms())
    assert ask is not None
    assert (ask.mode, ask.thinking_budget) == ("explicit", 77)


@pytest.mark.parametrize("name", ["mdoe", "Mode", "num_latents_tokens", "num_latent_token", "routers"])
def test_near_misses_of_our_fields_get_a_suggestion(name: str) -> None:
    terms = Terms(known_fields={"/v1/chat/completions": {"model", "messages", "moderation"}})
    with pytest.raises(BadRequestError, match="Did you mean"):
        read_ask("/v1/chat/completions", {name: "latent"}, None, terms)
    for other in ("model", "messages", "moderation", "x_custom"):
        assert read_ask("/v1/chat/completions", {other: "x"}, None, terms)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"mode": "latent", "add_generation_prompt": 0}),
        ("/v1/chat/completions", {"mode": "latent", "use_beam_search": 1}),
        ("/v1/chat/completions", {"chat_template_kwargs": {"max_length": 1}}),
        ("/v1/chat/completions", {"router": {"early": True}}),
        ("/v1/route", {"continue_final_message": True}),
        ("/v1/completions", {"num_latent_tokens": 4}),
    ],
)
def test_what_cannot_be_combined_is_refused(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        read_ask(path, body, None, Terms(template_kwargs={"enable_thinking"}))


@pytest.mark.parametrize("field", [{"add_generation_prompt": 0}, {"continue_final_message": True}, {"use_beam_search": 1}])
def test_where_there_is_nothing_to_choose_vllm_answers_alone(field: dict[str, Any]) -> None:
    assert read_ask("/v1/chat/completions", field, None, Terms()).is_plain


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'])
def test_bodies_that_cannot_be_sent_on_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse(raw)


def test_bodies_that_are_no_json_are_left_to_vllm() -> None:
    assert parse(b"{") is None
    assert parse(b'{"a": [1, 2.5, "\xc3\xa9"]}') == {"a": [1, 2.5, "é"]}


def test_what_is_sent_on_is_utf8() -> None:
    assert encode({"a": "é"}) == b'{"a": "\xc3\xa9"}'
    with pytest.raises(BadRequestError, match="surrogate"):
        encode(parse(b'{"a": "\\ud800"}'))
    response = BadRequestError("Half: \ud800", "\ud800").response()
    assert json.loads(response.body)["error"]["param"] == "\ud800"


@pytest.mark.parametrize("value", ["x" * 129, "a\nb", "été", 3, ["x"]])
def test_ids_that_cannot_be_repeated(value: object) -> None:
    with pytest.raises(BadRequestError, match="128 printable ASCII"):
        check_id(value, "x-request-id")


def test_ids() -> None:
    assert (check_id(None, "x"), check_id("", "x"), check_id("abc 1", "x")) == (None, None, "abc 1")


def test_a_session_is_the_headers_or_the_bodys() -> None:
    body = {"session_id": "inner", "prompt_cache_key": "shared", "x": 1}
    assert take_session(body, None) == "inner"
    assert body == {"prompt_cache_key": "shared", "x": 1}
    assert take_session({"session_id": "inner"}, "outer") == "outer"
    assert take_session({"prompt_cache_key": "shared"}, "") is None
    for header, given, param in (("a" * 129, None, "X-Session-ID"), ("été", None, "X-Session-ID"), ("a", 3, "session_id")):
        with pytest.raises(BadRequestError) as refused:
            take_session({"session_id": given}, header)
        assert refused.value.param == param


def test_a_conversation_that_would_have_to_be_kept_is_refused() -> None:
    with pytest.raises(BadRequestError, match="X-Session-ID"):
        read_ask("/v1/responses", {"input": "x", "conversation": "conv_1"}, None, Terms())


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [1, 2]}, 1),
        ({"prompt": [[1], [2]]}, 2),
        ({"n": "x"}, 1),
    ],
)
def test_a_request_counts_as_many_as_its_answers(body: dict[str, Any], answers: int) -> None:
    assert count_answers(body) == answers


def test_the_limit_of_an_answer_by_its_names() -> None:
    assert given_limit({"max_tokens": 5, "max_completion_tokens": 7}) == 7
    assert given_limit({"max_output_tokens": 9}) == 9
    assert given_limit({"max_tokens": "many"}) is None
    assert given_limit({}) is None


def test_a_deadline_is_capped_by_the_servers() -> None:
    body = {"timeout_seconds": 5, "x": 1}
    assert (take_seconds(body, 600.0), body) == (5.0, {"x": 1})
    assert take_seconds({"timeout_seconds": 5000}, 600.0) == 600.0
    assert take_seconds({}, 600.0) == 600.0


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        ({}, "explicit"),
        ({"mode": "direct"}, "direct"),
        ({"reasoning_effort": "low"}, "explicit"),
        ({"reasoning_effort": "none"}, "direct"),
    ],
)
def test_an_adapter_thinks_in_text_alone(body: dict[str, Any], mode: str) -> None:
    terms = Terms(adapters=["demo:brief"])
    assert read_ask("/v1/chat/completions", body | {"model": "demo:brief", "messages": []}, None, terms).mode == mode
    assert read_ask("/v1/chat/completions", {"model": "demo", "messages": []}, None, terms).mode == "auto"


@pytest.mark.parametrize("mode", ["latent", "auto", "latent+explicit"])
def test_an_adapter_has_no_latents(mode: str) -> None:
    with pytest.raises(BadRequestError, match="it is an adapter"):
        read_ask("/v1/chat/completions", {"model": "demo:brief", "mode": mode}, None, Terms(adapters=["demo:brief"]))
