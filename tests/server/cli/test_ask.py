"""`ask`, against a server that is no latentserve."""

import io

import pytest

from server.ask import Question, Reply
from tests.server.cli import run


def test_a_server_that_ignores_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    def plain(question: Question, show: object) -> Reply:
        asked.append(question)
        return Reply("m", "4")

    monkeypatch.setattr("server.cli.ask.send", plain)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr("sys.stdin", io.StringIO("How many?\n"))
    assert "the server ignored --mode latent" in run("ask", "--mode", "latent", "--url", "http://host/v1/").stderr
    assert "ignored" not in run("ask", "2 + 2?").stderr
    assert [(one.text, one.url, one.api_key) for one in asked] == [
        ("How many?", "http://host", "k"),
        ("2 + 2?", "http://127.0.0.1:8000", "k"),
    ]
