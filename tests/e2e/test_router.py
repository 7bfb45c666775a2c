"""The router as clients and operators use it, against the real server."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from reasoning_net.demo.questions import Question
from tests.conftest import NUM_LATENTS, OPERATOR_KEY
from tests.e2e.test_modes import ask, collect, metric

OPERATOR = {"Authorization": f"Bearer {OPERATOR_KEY}"}


def chat(server: str, question: Question, **fields: Any) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": question.question}], "temperature": 0, "mode": "auto"}
    return httpx.post(f"{server}/v1/chat/completions", json=body | fields, timeout=60)


def test_route_decides_as_auto_does_and_generates_nothing(server: str, client: openai.OpenAI, asked: list[Question]) -> None:
    for question in asked[:4]:
        messages = [{"role": "user", "content": question.question}]
        body = {"model": "demo", "mode": "auto", "messages": messages, "stream": True, "n": 1}
        routed = httpx.post(f"{server}/v1/route", json=body, timeout=60)
        assert routed.status_code == 200, routed.text
        content = routed.json()
        assert "choices" not in content
        answered = ask(client, question, "auto")
        assert content["route"]["latent_tokens"] in (0, NUM_LATENTS)
        if not answered.route["escalated"]:
            assert content["route"]["mode"] == answered.route["mode"]
        assert content["prompt_tokens"] == answered.usage.prompt_tokens
        assert content["route"]["scores"]["latent"] == content["route"]["score"]
        assert 0 <= content["route"]["scores"]["direct"] <= 1
    named = httpx.post(f"{server}/v1/route", json=body | {"mode": "explicit"}, timeout=60).json()
    assert named["route"]["mode"] == "explicit"
    assert named["route"]["scores"] == content["route"]["scores"]


def test_route_tells_endpoint_pickers_what_an_answer_will_weigh(server: str, asked: list[Question]) -> None:
    def weight(**fields: Any) -> int:
        body = {"model": "demo", "messages": [{"role": "user", "content": asked[0].question}], "temperature": 0} | fields
        return int(httpx.post(f"{server}/v1/route", json=body, timeout=60).headers["X-Reasoning-Expected-Tokens"])

    chain, latent = weight(mode="explicit"), weight(mode="latent")
    written = chat(server, asked[0], mode="explicit").json()["usage"]["completion_tokens"]
    assert chain == pytest.approx(written, rel=0.5)
    assert 0 < latent < 30 < chain
    assert weight(mode="explicit", n=3, temperature=1) == pytest.approx(3 * chain, abs=3)
    assert weight(mode="explicit", max_tokens=20) == 20
    assert "X-Reasoning-Expected-Tokens" not in chat(server, asked[0], mode="direct").headers


def test_route_refuses_what_chat_refuses(server: str) -> None:
    response = httpx.post(f"{server}/v1/route", json={"model": "demo", "mode": "often", "messages": []})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "mode"
    assert httpx.post(f"{server}/v1/route", json={"model": "nobody", "messages": []}).status_code == 404


def test_router_says_what_decides(server: str) -> None:
    router = httpx.get(f"{server}/v1/router").json()
    assert router["policy"] == "utility"
    assert router["point"]["price"] > 0
    assert len(router["calibration"]["points"]) > 50
    assert router["measured"]["auroc"]["latent"] > 0.8


def test_an_asked_share_of_explicit_answers_is_kept(server: str, asked: list[Question]) -> None:
    for share in (0.0, 1.0):
        routes = [chat(server, q, router={"explicit_share": share}).json()["route"] for q in asked[:12]]
        explicit = sum(route["mode"] == "explicit" for route in routes)
        assert explicit == 0 if share == 0 else explicit >= 8
        assert all(route["policy"] == "utility" for route in routes)


def doubtful(server: str, asked: list[Question], **fields: Any) -> tuple[Question, dict[str, Any]]:
    """A question whose latent answer is escalated, with its completion."""
    for question in asked:
        content = chat(server, question, router={"explicit_share": 0.2}, **fields).json()
        if content["route"]["escalated"]:
            return question, content
    raise AssertionError("no answer was escalated")


def test_a_doubtful_answer_is_replaced_whole(server: str, client: openai.OpenAI, asked: list[Question]) -> None:
    before = metric(server, "latentserve_checked_answers_total", outcome="escalated")
    question, content = doubtful(server, asked)
    assert metric(server, "latentserve_checked_answers_total", outcome="escalated") == before + 1
    message, route = content["choices"][0]["message"], content["route"]
    assert (route["mode"], route["reason"]) == ("explicit", "answer_doubtful")
    assert route["discarded_tokens"] > 0
    assert route["thinking_budget"] > 0
    assert message["reasoning"]
    explicit = ask(client, question, "explicit").choices[0].message
    assert message["content"] == explicit.content
    chunks, text, reasoning = collect(
        ask(client, question, "auto", stream=True, extra_body={"router": {"explicit_share": 0.2}})
    )
    assert (text[0], reasoning[0]) == (message["content"], message["reasoning"])
    assert chunks[-1].route["escalated"]
    kept = chat(server, question, router={"explicit_share": 0.2, "escalate": False}).json()["route"]
    assert not kept["escalated"]
    several = chat(server, question, router={"explicit_share": 0.2}, n=2, temperature=0.5).json()
    assert not several["route"]["escalated"]


def test_an_early_answer_that_is_found_doubtful_is_followed_by_a_marked_restart(
    server: str, client: openai.OpenAI, asked: list[Question]
) -> None:
    question, content = doubtful(server, asked)
    options = {"explicit_share": 0.2, "early": True}
    chunks = list(ask(client, question, "auto", stream=True, extra_body={"router": options}))
    restarts = [i for i, chunk in enumerate(chunks) if getattr(chunk, "route", None) and chunk.route.get("restart")]
    assert len(restarts) == 1
    _, void, no_reasoning = collect(chunks[: restarts[0]])
    _, text, reasoning = collect(chunks[restarts[0] + 1 :])
    assert void[0]
    assert not no_reasoning[0]
    assert (text[0], reasoning[0]) == (
        content["choices"][0]["message"]["content"],
        content["choices"][0]["message"]["reasoning"],
    )
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert chunks[-1].route["discarded_tokens"] > 0
    refused = chat(server, question, router=options)
    assert "early is for streamed" in refused.json()["error"]["message"]


def test_logprobs_are_given_only_to_who_asks(server: str, asked: list[Question]) -> None:
    for question in asked[:3]:
        without = chat(server, question, router={"explicit_share": 0.0}).json()
        assert without["choices"][0]["logprobs"] is None
        given = chat(server, question, router={"explicit_share": 0.0}, logprobs=True, top_logprobs=2).json()
        assert len(given["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ({"policy": "clever"}, "Policies are utility"),
        ({"explicit_share": 0.1, "mean_tokens": 50}, "exactly one"),
        ({"explicit_share": 2}, "less than or equal to 1"),
        ({"mean_tokens": 1}, "out of reach"),
        ({"p95_seconds": 1}, "--url"),
        ({"policy": "entropy"}, "without a bundle"),
        ({"cheap": True}, "router.cheap"),
        ("fast", "router"),
    ],
)
def test_wishes_that_cannot_be_met(server: str, asked: list[Question], router: Any, says: str) -> None:
    response = chat(server, asked[0], router=router)
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]["message"]


def test_a_named_mode_takes_no_router(server: str, asked: list[Question]) -> None:
    response = chat(server, asked[0], mode="latent", router={"max_cost": 5})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "router")


def test_costs_are_limited_per_request(server: str, asked: list[Question]) -> None:
    for question in asked[:4]:
        content = chat(server, question, router={"max_cost": 30}).json()
        assert (content["route"]["mode"], content["route"]["reason"]) == ("latent", "cost_limit")
        assert content["usage"]["completion_tokens"] <= 30


def test_diffadapt_cuts_the_thinking_of_easy_questions(server: str, asked: list[Question]) -> None:
    routes = [chat(server, question, router={"policy": "diffadapt"}, max_tokens=4).json()["route"] for question in asked[:8]]
    assert {route["mode"] for route in routes} == {"explicit"}
    budgets = {route["reason"]: route["thinking_budget"] for route in routes}
    assert budgets["easy"] < budgets.get("normal", 10_000)


def test_only_the_operator_switches_the_router(server: str, asked: list[Question]) -> None:
    before = httpx.get(f"{server}/v1/router").json()["point"]
    assert httpx.put(f"{server}/v1/router", json={"explicit_share": 0.5}).status_code == 403
    wrong = httpx.put(f"{server}/v1/router", json={"explicit_share": 0.5}, headers={"Authorization": "Bearer guess"})
    assert wrong.status_code == 403
    try:
        switched = httpx.put(f"{server}/v1/router", json={"explicit_share": 0.5}, headers=OPERATOR).json()
        assert switched["point"]["explicit_share"] == pytest.approx(0.5, abs=0.01)
        assert httpx.get(f"{server}/v1/router").json()["point"] == switched["point"]
        for bad in ({}, {"policy": "clever"}, {"max_cost": 5, "policy": "utility"}, {"accuracy_floor": 0.99999}):
            refused = httpx.put(f"{server}/v1/router", json=bad, headers=OPERATOR)
            assert refused.status_code == 400, bad
        assert httpx.get(f"{server}/v1/router").json()["point"] == switched["point"]
        httpx.put(f"{server}/v1/router", json={"policy": "always-latent"}, headers=OPERATOR)
        assert chat(server, asked[0]).json()["route"]["reason"] == "always"
    finally:
        restored = httpx.put(f"{server}/v1/router", json={"policy": "utility"}, headers=OPERATOR).json()
    assert restored["point"] == before


def test_every_routed_request_is_logged(server: str, decision_log: Path, asked: list[Question]) -> None:
    answered = chat(server, asked[20]).json()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        last = json.loads(decision_log.read_text().splitlines()[-1])
        if last["score"] == answered["route"]["score"]:
            break
        time.sleep(0.05)
    assert last["mode"] == answered["route"]["mode"]
    assert last["generated_tokens"] == answered["usage"]["completion_tokens"]
    assert set(last["scores"]) == {"direct", "latent", "explicit", "tokens"}
    assert asked[20].question not in decision_log.read_text()


def test_a_shifted_mix_of_questions_raises_the_drift(server: str, asked: list[Question]) -> None:
    easy = [question for question in asked if question.steps <= 2]
    for i in range(120):  # the same few questions again and again
        body = {"model": "demo", "messages": [{"role": "user", "content": easy[i % len(easy)].question}]}
        assert httpx.post(f"{server}/v1/route", json=body, timeout=60).status_code == 200
    assert metric(server, "latentserve_router_drift_psi") > 0.25
    assert httpx.get(f"{server}/ready").json()["router_drift_psi"] > 0.25
