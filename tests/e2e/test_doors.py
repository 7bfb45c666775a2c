"""A server with keys, behind a proxy's prefix, with a mode of a third party: no way in that nobody decided upon."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reasoning_net.demo.questions import Question
from server.http.routes import PROTECTED, is_public
from tests.conftest import running_server

KEY = {"Authorization": "Bearer secret"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    third_party = Path(__file__).parent / "third_party"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(third_party), os.environ.get("PYTHONPATH")))))
        flags = ("--api-key", "secret", "--root-path", "/prefix")
        with (
            running_server(tmp_path_factory.mktemp("doors") / "log.txt", *flags) as url,
            httpx.Client(base_url=url, timeout=120) as client,
        ):
            yield client


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
