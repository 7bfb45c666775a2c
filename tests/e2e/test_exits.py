"""Chains that end early, as a client sees it. The rule is one that every trial meets."""

import json
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import Question

CHAT = "/v1/chat/completions"
AT_ONCE = {"confidence": 0.0, "agreeing": 1, "first": 0.0}
NEVER = AT_ONCE | {"confidence": 1.0}


def body(question: Question, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question.question}]
    return {"model": "demo", "mode": "explicit", "messages": messages, "temperature": 0, "max_tokens": 700} | options


def post(server: str, **content: Any) -> dict[str, Any]:
    response = httpx.post(server + CHAT, json=content, timeout=60)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_chain_ends_where_its_trials_are_sure_and_the_answer_follows(server: str, asked: list[Question]) -> None:
    hardest = max(asked, key=lambda question: question.steps)
    whole, early = post(server, **body(hardest)), post(server, **body(hardest, exit=AT_ONCE))
    assert "exit" not in whole["route"]
    found, message = early["route"]["exit"], early["choices"][0]["message"]
    assert found["rule"] == "answer"
    assert 0 < found["at_tokens"] <= early["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert early["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert found["trials"] >= 1
    assert found["trial_tokens"] > 0
    assert whole["choices"][0]["message"]["reasoning"].strip().startswith(message["reasoning"].strip()[:40])
    assert "think>" not in message["content"] + message["reasoning"]
    assert message["content"]
    assert early["choices"][0]["finish_reason"] == "stop"


def test_trials_wait_for_where_the_model_may_end(server: str, asked: list[Question]) -> None:
    hardest = max(asked, key=lambda question: question.steps)
    trials = [
        post(server, **body(hardest, exit=NEVER | {"closes": closes}))["route"].get("exit", {"trials": 0})["trials"]
        for closes in (0.0, 1e-5, 0.5)
    ]
    assert trials[0] > trials[1] > trials[2] == 0


def test_a_stream_says_the_same(server: str, asked: list[Question]) -> None:
    content, reasoning, route = "", "", {}
    sent = body(asked[0], exit=AT_ONCE, stream=True)
    with httpx.stream("POST", server + CHAT, json=sent, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                route = event.get("route", route)
                for choice in event["choices"]:
                    content += choice["delta"].get("content") or ""
                    reasoning += choice["delta"].get("reasoning") or ""
    assert route["exit"]["rule"] == "answer"
    assert content
    assert reasoning
    assert "think>" not in content + reasoning


def test_trials_that_are_never_sure_change_nothing(server: str, asked: list[Question]) -> None:
    whole, tried = post(server, **body(asked[0])), post(server, **body(asked[0], exit=NEVER))
    assert tried["choices"] == whole["choices"]
    assert tried["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert tried["route"]["exit"]["rule"] is None
    assert tried["route"]["exit"]["trials"] > 0
    assert tried["route"]["discarded_tokens"] == tried["route"]["exit"]["trial_tokens"]


def test_an_answer_after_an_exit_keeps_to_its_schema_and_its_limit(server: str, asked: list[Question]) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = post(server, **body(asked[0], exit=AT_ONCE, response_format=form))
    assert answer["route"]["exit"]["rule"] == "answer"
    assert json.loads(answer["choices"][0]["message"]["content"])["n"] in (1, 2, 3)
    short = post(server, **body(asked[0], exit=AT_ONCE, max_tokens=24))
    assert short["usage"]["completion_tokens"] <= 24


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "latent", "exit": True}, "exit is for chains in text"),
        ({"exit": "soon"}, "exit must be true, false"),
        ({"exit": {"confidence": 2}}, "exit.confidence"),
        ({"exit": {"lambda": 0.9}}, "exit.lambda"),
        ({"exit": True, "n": 2}, "one answer"),
        ({"exit": True, "logprobs": True}, "log-probabilities"),
    ],
)
def test_what_cannot_be_is_refused(server: str, asked: list[Question], fields: dict[str, Any], says: str) -> None:
    response = httpx.post(server + CHAT, json=body(asked[0], **fields), timeout=60)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "exit"
