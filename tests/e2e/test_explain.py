"""What latents say, against the real server: in the route of an answer, and put to the test."""

from typing import Any

import httpx
import openai
import pytest

from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase
from reasoning_net.lens import whole_numbers
from tests.conftest import NUM_LATENTS
from tests.e2e.test_modes import ask, collect, metric

BODIES = {"/v1/chat/completions": "messages", "/v1/messages": "messages", "/v1/responses": "input", "/v1/completions": "prompt"}
ROW = {"latent", "value", "operation", "probability", "verified"}


def body(path: str, question: Question | str, **fields: Any) -> dict[str, Any]:
    text = question if isinstance(question, str) else question.question
    asked = [{"role": "user", "content": text}] if path != "/v1/completions" else text
    named = BODIES.get(path, "messages")
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    return {"model": "demo", named: asked, limit: 40, "temperature": 0} | fields


def post(server: str, path: str, question: Question | str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server}{path}", json=body(path, question, **fields), timeout=120)


@pytest.mark.parametrize("path", BODIES)
def test_every_protocol_says_what_each_latent_says(server: str, base: FrozenBase, asked: list[Question], path: str) -> None:
    numbers = set(whole_numbers(base.tokenizer).values())
    route = post(server, path, asked[0], mode="latent", explain=True).json()["route"]
    assert [row["latent"] for row in route["trace"]] == list(range(1, NUM_LATENTS + 1))
    for row in route["trace"]:
        assert set(row) == ROW
        assert row["value"] in numbers
        assert 0 < row["probability"] <= 1
        assert row["verified"] is None, "nothing was put to the test"
    assert route["stages"]["trace"] > 0
    streamed = post(server, path, asked[0], mode="latent", explain=True, stream=True).text
    assert f'"value":{route["trace"][0]["value"]},' in streamed
    assert '"decodability":' in streamed
    assert "trace" not in post(server, path, asked[0], mode="latent").json()["route"], "nobody asked"


def test_the_rows_are_the_same_however_the_answer_is_asked_for(client: openai.OpenAI, asked: list[Question]) -> None:
    """In one engine request, and read first and answered afterwards."""
    explain = {"explain": True}
    begun = ask(client, asked[1], "latent", extra_body=explain)
    read = ask(client, asked[1], "latent", extra_body=explain, logprobs=True, top_logprobs=2)
    few = ask(client, asked[1], "latent", extra_body=explain | {"num_latent_tokens": 4})
    chunks, content, _ = collect(ask(client, asked[1], "latent", extra_body=explain, stream=True))
    assert begun.choices[0].message.content == read.choices[0].message.content == content[0]
    values = [row["value"] for row in begun.route["trace"]]
    for route in (read.route, chunks[-1].route):
        assert [row["value"] for row in route["trace"]] == values
    assert [row["value"] for row in few.route["trace"]] == values[:4]


def test_decodability_is_the_answers_probability(client: openai.OpenAI, asked: list[Question]) -> None:
    legible = 0
    for question in asked[:16]:
        answer = ask(client, question, "latent", extra_body={"explain": True})
        said = [word for word in answer.choices[0].message.content.replace(".", " ").split() if word.isdigit()]
        holding = [row["probability"] for row in answer.route["trace"] if str(row["value"]) == said[-1]]
        assert answer.route["decodability"] == max(holding, default=0)
        steps = [row for row in answer.route["trace"] if row["operation"]]
        assert not steps or str(steps[-1]["value"]) == said[-1], "steps lead to the answer"
        legible += bool(holding)
    assert legible >= 4, "the demo's latents hold the answer where they can be read"


def test_answers_that_are_not_made_from_latents_have_no_trace(client: openai.OpenAI, asked: list[Question]) -> None:
    for mode in ("direct", "explicit"):
        route = ask(client, asked[2], mode, extra_body={"explain": True}).route
        assert (route["trace"], route["decodability"]) == (None, None)
    found = set()
    for question in asked[:24]:
        route = ask(client, question, "auto", extra_body={"explain": True}).route
        assert (route["trace"] is not None) == ("latent" in route["mode"])
        found.add(route["trace"] is None)
    assert found == {True, False}
    both = ask(client, asked[2], "latent+explicit", extra_body={"explain": True}).route
    assert len(both["trace"]) == NUM_LATENTS


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"explain": "yes"}, "explain"),
        ("/v1/chat/completions", {"explian": True}, "explian"),
        ("/v1/completions", {"explain": True}, "explain"),
        ("/v1/explain", {"mode": "explicit"}, "mode"),
        ("/v1/explain", {"reasoning_effort": "none"}, "mode"),
        ("/v1/explain", {"num_latent_tokens": 9999}, "num_latent_tokens"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    server: str, asked: list[Question], path: str, fields: dict[str, Any], param: str
) -> None:
    response = post(server, path, asked[0], **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_an_explanation_is_put_to_the_test(server: str, client: openai.OpenAI, asked: list[Question]) -> None:
    """Questions are changed where there are steps to follow, and each answer is the one of latent mode."""
    outcomes = set()
    for question in asked[:32]:
        found = post(server, "/v1/explain", question).json()
        inline = ask(client, question, "latent", max_tokens=40, extra_body={"explain": True})
        assert found["answer"] == inline.choices[0].message.content
        assert [row["value"] for row in found["trace"]] == [row["value"] for row in inline.route["trace"]]
        assert found["route"]["mode"] == "latent"
        assert "trace" not in found["route"]
        steps = [row for row in found["trace"] if row["operation"]]
        assert found["verified"] is (bool(steps) and all(row["verified"] for row in steps))
        assert all(row["verified"] in (True, False) for row in steps)
        assert steps or found["changed_tokens"] == 0
        assert found["changed_tokens"] <= 24 * (inline.usage.prompt_tokens + 1), "bounded work"
        outcomes.add(bool(steps))
    assert outcomes == {True, False}


def test_an_explanation_is_counted_and_leaves_nothing_behind(server: str, asked: list[Question]) -> None:
    labels = {"mode": "latent", "requested": "latent"}
    before = metric(server, "latentserve_requests_total", **labels)
    answer = post(server, "/v1/explain", asked[3], stream=True, n=2).json()
    assert set(answer) == {
        "id", "model", "usage", "answer", "trace", "verified", "strategy", "changed_tokens", "route",
    }  # fmt: skip
    assert answer["usage"]["prompt_tokens_details"]["latent_tokens"] == NUM_LATENTS
    assert metric(server, "latentserve_requests_total", **labels) == before + 1
    assert metric(server, "vllm:num_requests_running") == 0
