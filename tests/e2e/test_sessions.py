"""What a client's session id does on the real server, and what it does not."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import Question

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/route")


def post(server: str, asked: Question, session: str | None, path: str = PATHS[0], **fields: Any) -> httpx.Response:
    said = {"messages": [{"role": "user", "content": asked.question}], "input": asked.question, "prompt": asked.question}
    name = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
    body = {"model": "demo", "temperature": 0, "max_tokens": 24, name: said[name]} | fields
    return httpx.post(f"{server}{path}", json=body, headers={"X-Session-ID": session} if session else {}, timeout=60)


@pytest.mark.parametrize("path", PATHS)
def test_a_session_comes_back_whatever_is_answered(server: str, asked: list[Question], path: str) -> None:
    for fields in ({}, {"mode": "direct", "stream": path != "/v1/route"}, {"mode": "latent", "num_latent_tokens": 999}):
        response = post(server, asked[30], "cart 7", path, **fields)
        assert response.headers["X-Session-ID"] == "cart 7", response.text
        assert response.status_code == (400 if "num_latent_tokens" in fields else 200), response.text
    assert "X-Session-ID" not in post(server, asked[30], None, path).headers


def test_a_session_is_written_down(server: str, asked: list[Question], decision_log: Path) -> None:
    answer = post(server, asked[31], "cart-8", mode="latent", session_id="ignored")
    assert post(server, asked[31], None, mode="latent", session_id="cart-9").headers["X-Session-ID"] == "cart-9"
    lines = {line["request_id"]: line for line in map(json.loads, decision_log.read_text().splitlines())}
    assert lines[answer.json()["id"]]["session_id"] == "cart-8"


@pytest.mark.parametrize("session", ["x" * 129, "a\tb"])
def test_a_session_that_cannot_be_repeated_is_refused(server: str, asked: list[Question], session: str) -> None:
    response = post(server, asked[31], session, mode="direct")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "X-Session-ID")


def test_sessions_share_the_prefix_cache_and_no_answer_depends_on_them(server: str, asked: list[Question]) -> None:
    first, second = (post(server, asked[32], f"session-{i}", mode="latent").json() for i in range(2))
    assert second["choices"] == first["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
