"""Chains that end early, as a client sees it. The rule is one that every trial meets."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import Question

CHAT = "/v1/chat/completions"
AT_ONCE = {"confidence": 0.0, "agreeing": 1, "first": 0.0}
INLINE = AT_ONCE | {"closes": 1e-5}
NEVER = {"confidence": 1.0}
BOTH = pytest.mark.parametrize("rule", [AT_ONCE, INLINE], ids=["beside", "inline"])


def body(question: Question, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question.question}]
    return {"model": "demo", "mode": "explicit", "messages": messages, "temperature": 0, "max_tokens": 700} | options


def post(server: str, **content: Any) -> dict[str, Any]:
    response = httpx.post(server + CHAT, json=content, timeout=60)
    assert response.status_code == 200, response.text
    return dict(response.json())


@BOTH
def test_a_chain_ends_where_its_trials_are_sure_and_the_answer_follows(
    server: str, asked: list[Question], rule: dict[str, Any]
) -> None:
    hardest = max(asked, key=lambda question: question.steps)
    whole, early = post(server, **body(hardest)), post(server, **body(hardest, exit=rule))
    assert "exit" not in whole["route"]
    found, message = early["route"]["exit"], early["choices"][0]["message"]
    assert found["rule"] == "answer"
    reasoning = early["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < found["at_tokens"] <= reasoning + 1, "with the tag that opens it"
    assert early["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert found["trials"] >= 1
    assert (found["trial_tokens"] > 0) == (rule is AT_ONCE), "what is closed in line is the answer"
    assert whole["choices"][0]["message"]["reasoning"].strip().startswith(message["reasoning"].strip()[:40])
    assert "think>" not in message["content"] + message["reasoning"]
    assert message["content"]
    assert early["choices"][0]["finish_reason"] == "stop"


def test_trials_wait_for_where_the_model_may_end(server: str, asked: list[Question]) -> None:
    hardest = max(asked, key=lambda question: question.steps)
    trials = [
        post(server, **body(hardest, exit=AT_ONCE | NEVER | {"closes": closes}))["route"].get("exit", {"trials": 0})["trials"]
        for closes in (0.0, 1e-5, 0.5)
    ]
    assert trials[0] > trials[1] > trials[2] == 0


@BOTH
def test_a_stream_says_the_same(server: str, asked: list[Question], rule: dict[str, Any]) -> None:
    at_once = post(server, **body(asked[0], exit=rule))
    content, reasoning, route = "", "", {}
    with httpx.stream("POST", server + CHAT, json=body(asked[0], exit=rule, stream=True), timeout=60) as response:
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
    if rule is INLINE:  # how far a chain comes beside its trial is a matter of time
        message = at_once["choices"][0]["message"]
        assert (reasoning, content) == (message["reasoning"], message["content"])


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_trials_that_are_never_sure_change_nothing(
    server: str, asked: list[Question], rule: dict[str, Any], stream: bool
) -> None:
    whole = post(server, **body(asked[0]))
    if stream:
        with httpx.stream("POST", server + CHAT, json=body(asked[0], exit=rule | NEVER, stream=True), timeout=60) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        message = whole["choices"][0]["message"]
        for part in ("reasoning", "content"):
            assert "".join(delta.get(part) or "" for delta in deltas) == message[part]
        assert events[-1]["route"]["exit"]["rule"] is None
        return
    tried = post(server, **body(asked[0], exit=rule | NEVER))
    assert tried["choices"] == whole["choices"]
    assert tried["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert tried["route"]["exit"]["rule"] is None
    assert tried["route"]["exit"]["trials"] > 0
    assert tried["route"]["discarded_tokens"] == tried["route"]["exit"]["trial_tokens"] > 0


@BOTH
def test_an_answer_after_an_exit_keeps_to_its_schema_and_its_limit(
    server: str, asked: list[Question], rule: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = post(server, **body(asked[0], exit=rule, response_format=form))
    assert answer["route"]["exit"]["rule"] == "answer"
    assert json.loads(answer["choices"][0]["message"]["content"])["n"] in (1, 2, 3)
    used = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    for limit in (24, used - 1, used, used + 1, used + 2):  # around where an inline trial begins
        short = post(server, **body(asked[0], exit=rule, max_tokens=limit))
        assert short["usage"]["completion_tokens"] <= limit


def test_answers_that_are_never_sure_cost_one_whole_answer_and_then_their_trials(server: str, asked: list[Question]) -> None:
    hostile = INLINE | NEVER | {"closes": 1e-12, "trial_tokens": 1, "gap_tokens": 1, "max_trials": 100}
    found = post(server, **body(asked[0], exit=hostile, max_tokens=600, ignore_eos=True))["route"]["exit"]
    assert found["trials"] >= 3
    assert found["trial_tokens"] < 600 + 30 * found["trials"]


def test_many_chains_are_closed_side_by_side(server: str, asked: list[Question]) -> None:
    alone = [post(server, **body(question, exit=INLINE)) for question in asked[:8]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda question: post(server, **body(question, exit=INLINE)), asked[:8]))
    ends = [[one["route"].get("exit", {}).get("at_tokens") for one in answers] for answers in (alone, together)]
    assert ends[0] == ends[1]
    assert any(ends[0])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "latent", "exit": True}, "exit is for chains in text"),
        ({"exit": "soon"}, "exit must be true, false"),
        ({"exit": {"confidence": 2}}, "exit.confidence"),
        ({"exit": {"lambda": 0.9}}, "exit.lambda"),
        ({"exit": {"closes": 0.1, "give_up_entropy": 0.1}}, "leave out plateau_entropy"),
        ({"exit": True, "n": 2}, "one answer"),
        ({"exit": True, "logprobs": True}, "log-probabilities"),
    ],
)
def test_what_cannot_be_is_refused(server: str, asked: list[Question], fields: dict[str, Any], says: str) -> None:
    response = httpx.post(server + CHAT, json=body(asked[0], **fields), timeout=60)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "exit"
