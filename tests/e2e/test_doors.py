"""A server with keys, behind a proxy's prefix, with a mode of a third party: no way in that nobody decided upon. And what its
operator may set beside: budgets by effort, a reserve for answers, probes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from reasoning_net.bundle import Bundle
from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase
from server.http.routes import PROTECTED, is_public
from tests.conftest import running_server

RESERVE, LOW = 16, {"reasoning_effort": "low"}
KEY = {"Authorization": "Bearer secret"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    third_party = Path(__file__).parent / "third_party"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(third_party), os.environ.get("PYTHONPATH")))))
        directory = tmp_path_factory.mktemp("doors")
        flags = ("--api-key", "secret", "--root-path", "/prefix", "--answer-reserve-tokens", str(RESERVE))
        flags += ("--effort-budgets", "low=20,high=40", "--probe", str(probe_file(directory)))
        with (
            running_server(directory / "log.txt", *flags) as url,
            httpx.Client(base_url=url, timeout=120) as client,
        ):
            yield client


def probe_file(directory: Path) -> Path:
    """Any weights will do."""
    torch.manual_seed(0)
    path = directory / "mine.safetensors"
    save_file(
        torch.nn.Linear(192, 2).state_dict(), path, {"features": "latents", "outputs": "mine,yours", "activation": "identity"}
    )
    return path


def chat(question: Question, **fields: object) -> dict[str, object]:
    return {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": question.question}]} | fields


def test_every_route_is_public_by_decision_or_wants_a_key(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(PROTECTED) <= set(paths) | {"/load"}
    for path, operations in paths.items():
        assert is_public(path) != (path in PROTECTED), f"{path}: nobody decided who may call it"
        for method in operations:
            for prefix in ("", "/prefix"):
                code = http.request(method, prefix + path.replace("{response_id}", "x"), json={}).status_code
                assert (code != 401) if is_public(path) else (code == 401), (method, prefix + path, code)


@pytest.mark.parametrize("path", ["/invocations", "//v1/models", "/v1/models/", "/v1/../v1/models", "/V1/models", "/nothing"])
def test_no_spelling_of_a_path_goes_around_the_key(http: httpx.Client, path: str) -> None:
    assert http.get(path, follow_redirects=True).status_code == 401


def test_keys(http: httpx.Client) -> None:
    for headers in (KEY, {"Authorization": "bearer secret"}, {"x-api-key": "secret"}):
        assert http.get("/v1/models", headers=headers).status_code == 200
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"x-api-key": ""}, {"Authorization": ""}):
        response = http.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "AuthenticationError"
    assert http.post("/v1/messages", json={}).json()["type"] == "error", "Anthropic's shape on its endpoints"


def test_modes_and_guards_work_behind_a_prefix(http: httpx.Client, asked: list[Question]) -> None:
    for prefix in ("", "/prefix"):
        answer = http.post(prefix + CHAT, json=chat(asked[0], mode="latent"), headers=KEY).json()
        assert answer["route"]["mode"] == "latent"
        assert http.post(prefix + CHAT, json=chat(asked[0], mode="bogus"), headers=KEY).status_code == 400
        assert http.post(prefix + "/v1/route", json=chat(asked[0]), headers=KEY).json()["route"]["scores"]


def test_a_third_partys_mode_is_a_mode(http: httpx.Client, asked: list[Question]) -> None:
    assert "demo:majority" in {model["id"] for model in http.get("/v1/models", headers=KEY).json()["data"]}
    seen = set()
    for question in sorted(asked, key=lambda question: question.steps)[-20:]:  # hard ones: some answers disagree
        answer = http.post(CHAT, json=chat(question, mode="majority", seed=1), headers=KEY).json()
        route = answer["route"]
        assert (route["requested"], len(answer["choices"])) == ("majority", 1)
        assert answer["choices"][0]["message"]["content"]
        assert bool(answer["choices"][0]["message"]["reasoning"]) == (route["mode"] == "explicit")
        assert (route["reason"] == "disagreement") == route["escalated"] == (route["mode"] == "explicit")
        seen.add(route["mode"])
    assert seen == {"latent", "explicit"}


def unanswered(http: httpx.Client) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == "latentserve_unanswered_total" and s.labels["mode"] == "explicit")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "budget"),
    [
        (CHAT, {"reasoning_effort": "high"}, 40),
        (CHAT, {"reasoning_effort": "low", "mode": "explicit"}, 20),
        (CHAT, {"reasoning_effort": "high", "thinking_token_budget": 30}, 30),
        (CHAT, {"mode": "explicit", "max_tokens": 60}, 60 - RESERVE - 2),
        (CHAT, {"mode": "explicit", "max_tokens": 20}, 8),
        (CHAT, {"mode": "explicit"}, None),
        ("/v1/responses", {"reasoning": {"effort": "high"}}, 40),
        ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 25}, "max_tokens": 400}, 25),
    ],
)
def test_efforts_have_budgets_and_an_answer_always_comes(
    http: httpx.Client, asked: list[Question], path: str, fields: dict[str, Any], budget: int | None, stream: bool
) -> None:
    before = unanswered(http)
    body = chat(asked[0]) | fields | ({"stream": True} if stream else {})
    if path == "/v1/responses":
        body["input"] = body.pop("messages")
    reply = http.post(path, json=body, headers=KEY)
    assert reply.status_code == 200, reply.text
    route = last_route(reply)
    assert (route["mode"], route["unanswered"]) == ("explicit", False)
    if budget is None:
        assert route["thinking_budget"] > 1000, "the reply's limit is the model's length"
    else:
        assert route["thinking_budget"] == budget
    if path == CHAT and not stream:
        (choice,) = reply.json()["choices"]
        assert choice["message"]["content"]
        assert reply.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] <= (budget or 1000) + 2
    assert unanswered(http) == before


def test_an_effort_that_needs_no_chain_has_a_budget_for_nothing(http: httpx.Client, asked: list[Question]) -> None:
    low, latent = (http.post(CHAT, json=chat(asked[0], **f), headers=KEY).json() for f in (LOW, {"mode": "latent"}))
    assert low["choices"][0]["message"] == latent["choices"][0]["message"]
    assert low["route"]["mode"] == "latent"
    assert not {"thinking_budget", "unanswered"} & set(low["route"])


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_a_limit_that_is_too_small_for_anything_is_kept(http: httpx.Client, asked: list[Question], limit: int) -> None:
    before = unanswered(http)
    reply = http.post(CHAT, json=chat(asked[0], mode="explicit", max_tokens=limit), headers=KEY).json()
    assert reply["usage"]["completion_tokens"] == limit
    assert reply["route"]["thinking_budget"] == max(0, limit // 2 - 2)
    assert reply["route"]["unanswered"] == (limit == 1), "the tags take two tokens"
    assert unanswered(http) == before + (limit == 1)


def last_route(reply: httpx.Response) -> dict[str, Any]:
    """Of a whole answer, or of the last event that has one."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.json()["route"]
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    return [route for event in events if (route := event.get("route") or event.get("response", {}).get("route"))][-1]


def test_a_reply_that_is_stopped_within_its_chain_is_counted(http: httpx.Client, asked: list[Question]) -> None:
    before = unanswered(http)
    full = http.post(CHAT, json=chat(asked[0], mode="explicit"), headers=KEY).json()["choices"][0]["message"]["reasoning"]
    reply = http.post(CHAT, json=chat(asked[0], mode="explicit", stop=[full.split()[3]]), headers=KEY).json()
    assert reply["route"]["unanswered"]
    assert not reply["choices"][0]["message"]["content"]
    assert unanswered(http) == before + 1


def test_a_probe_of_ones_own_scores_every_question_that_is_read(
    http: httpx.Client, asked: list[Question], base: FrozenBase, bundle: Bundle, tmp_path: Path
) -> None:
    probe, net = torch.nn.Linear(192, 2), bundle.reasoning_net()
    probe.load_state_dict(load_file(probe_file(tmp_path)))
    for question in asked[:3]:
        prompt = base.read([base.prompt_ids([{"role": "user", "content": question.question}])])
        with torch.no_grad():
            z = net(prompt.hidden_states, prompt.embeddings, prompt.mask, 16)
            expected = dict(zip(("mine", "yours"), probe(z.mean(1))[0].tolist(), strict=True))
        for path, fields in (("/v1/route", {}), (CHAT, {"mode": "latent"}), (CHAT, {"mode": "auto"})):
            scores = http.post(path, json=chat(question, **fields), headers=KEY).json()["route"]["scores"]
            assert scores["probes"] == pytest.approx(expected, rel=0.05, abs=0.02)
            assert 0 <= scores["latent"] <= 1
    direct = http.post(CHAT, json=chat(asked[0], mode="direct"), headers=KEY).json()["route"]
    assert "probes" not in direct["scores"], "nothing was read"
    assert 'latentserve_probe_score_count{probe="mine"} ' in http.get("/metrics").text
    described = http.get("/v1/router", headers=KEY).json()
    assert described["probes"] == [{"features": ["latents"], "outputs": ["mine", "yours"], "activation": "identity"}]
    assert described["advice"] is None
