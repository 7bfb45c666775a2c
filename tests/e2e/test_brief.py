"""Thinking that is shown in brief."""

from typing import Any

import httpx
import openai
import pytest

from reasoning_net.demo.questions import Question

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def post(server: str, path: str = CHAT, **content: Any) -> dict[str, Any]:
    response = httpx.post(server + path, json={"model": "demo", "mode": "explicit", "temperature": 0} | content, timeout=60)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_the_last_sentences_are_shown_and_all_are_counted(server: str, asked: list[Question], client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": asked[0].question}]
    whole, brief = post(server, messages=messages), post(server, messages=messages, reasoning="brief")
    long, short = (answer["choices"][0]["message"]["reasoning"].strip() for answer in (whole, brief))
    assert 0 < len(short) < 0.6 * len(long)
    assert long.endswith(short)
    assert brief["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    assert brief["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert brief["usage"]["completion_tokens_details"] == whole["usage"]["completion_tokens_details"]
    extra = {"mode": "explicit", "reasoning": "brief"}
    create = client.chat.completions.create
    with create(model="demo", messages=messages, temperature=0, stream=True, extra_body=extra) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas).strip() == short
    assert "".join(delta.content or "" for delta in deltas) == whole["choices"][0]["message"]["content"]


def test_the_responses_api_asks_for_a_concise_summary(server: str, asked: list[Question]) -> None:
    answers = [
        post(server, RESPONSES, input=asked[1].question, reasoning=reasoning) for reasoning in ({}, {"summary": "concise"})
    ]
    long, short = (
        "".join(part["text"] for item in answer["output"] if item["type"] == "reasoning" for part in item["content"]).strip()
        for answer in answers
    )
    assert long.endswith(short)
    assert 0 < len(short) < len(long)


def test_a_chain_that_is_cut_is_shown_in_brief_too_and_latents_have_none(server: str, asked: list[Question]) -> None:
    messages = [{"role": "user", "content": asked[0].question}]
    cut = post(server, messages=messages, max_tokens=60, reasoning="brief")["choices"][0]
    assert cut["finish_reason"] == "length"
    assert cut["message"]["reasoning"]
    latent = post(server, messages=messages, mode="latent", reasoning="brief")["choices"][0]["message"]
    assert latent["content"]
    assert not latent["reasoning"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": "none"}, "reasoning"),
        ({"reasoning": "brief", "n": 2}, "n"),
        ({"reasoning": "brief", "logprobs": True}, "logprobs"),
    ],
)
def test_what_cannot_be_is_refused(server: str, asked: list[Question], fields: dict[str, Any], param: str) -> None:
    body = {"model": "demo", "mode": "explicit", "messages": [{"role": "user", "content": asked[0].question}]} | fields
    response = httpx.post(server + CHAT, json=body, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
