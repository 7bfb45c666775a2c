"""Thinking in mixtures of tokens, as a client sees it."""

from typing import Any

import httpx
import openai
import pytest

from reasoning_net.demo.questions import Question
from tests.e2e.test_exits import CHAT, post
from tests.e2e.test_exits import body as explicit


def body(question: Question, **options: Any) -> dict[str, Any]:
    return explicit(question, **{"mode": "soft", **options})


def test_a_chain_in_mixtures_is_shown_and_answered(server: str, asked: list[Question]) -> None:
    answer = post(server, **body(asked[0]))
    route, message = answer["route"], answer["choices"][0]["message"]
    assert (route["requested"], route["mode"]) == ("soft", "explicit")
    assert 0 < route["soft"]["steps"] <= answer["usage"]["completion_tokens_details"]["reasoning_tokens"] + 1
    assert route["soft"]["switches"] == 0
    assert message["reasoning"]
    assert message["content"]
    greedy = post(server, **body(asked[0], soft={"k": 1}))
    explicit = post(server, **body(asked[0], mode="explicit"))
    assert greedy["choices"] == explicit["choices"]
    assert "soft" not in explicit["route"]


def test_an_alias_streams_and_a_budget_cuts(client: openai.OpenAI, asked: list[Question]) -> None:
    messages: Any = [{"role": "user", "content": asked[0].question}]
    extra = {"thinking_token_budget": 12}
    with client.chat.completions.create(model="demo:soft", messages=messages, stream=True, extra_body=extra) as stream:
        chunks = list(stream)
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    route = next(chunk.model_extra["route"] for chunk in reversed(chunks) if chunk.model_extra.get("route"))
    assert 0 < route["soft"]["steps"] <= 13, "with the tag that opens thinking"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"mode": "explicit", "soft": {}}, "soft", "soft is for mode=soft"),
        ({"soft": {"k": 99}}, "soft", "soft.k"),
        ({"soft": "yes"}, "soft", "soft"),
        ({"n": 2}, "n", "one answer"),
        ({"logprobs": True}, "logprobs", "not sampled"),
    ],
)
def test_what_cannot_be_is_refused(server: str, asked: list[Question], fields: dict[str, Any], param: str, says: str) -> None:
    response = httpx.post(server + CHAT, json=body(asked[0], **fields), timeout=60)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == param
