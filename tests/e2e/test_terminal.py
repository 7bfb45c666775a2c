"""`ask` and `top` as a user runs them, against the real server."""

import json
import subprocess
import sys

import httpx

from reasoning_net.demo.questions import Question
from tests.conftest import NUM_LATENTS


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_ask_writes_the_answer_and_nothing_else(server: str, asked: list[Question]) -> None:
    result = run("ask", "--mode", "explicit", "--temperature", "0", "--url", server, text=asked[0].question)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == asked[0].reply
    assert "I need" in result.stderr
    assert "[explicit: requested, " in result.stderr


def test_ask_as_json(server: str, asked: list[Question]) -> None:
    result = run("ask", asked[0].question, "--mode", "latent", "--json", "--url", server)
    reply = json.loads(result.stdout)
    assert reply["route"]["mode"] == "latent"
    assert reply["reasoning"] == ""
    assert reply["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] >= 1
    assert 0 < reply["first_token_seconds"] <= reply["seconds"]
    assert set(reply["route"]["stages"]) == {"gateway", "queue", "read", "network", "probe", "discarded", "answer"}


def test_ask_explains(server: str, asked: list[Question]) -> None:
    latent = run("ask", asked[0].question, "--mode", "latent", "--temperature", "0", "--explain", "--url", server)
    assert latent.stdout.count("\n") == 1, "the answer, and nothing else"
    lines = latent.stderr.partition("What the latents say:\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:NUM_LATENTS]] == [str(row) for row in range(1, NUM_LATENTS + 1)]
    assert all(line.split()[1].isdigit() and "%" in line for line in lines[:NUM_LATENTS])
    assert "No latents" in run("ask", asked[0].question, "--mode", "direct", "--explain", "--url", server).stderr


def test_what_goes_wrong_is_one_sentence(server: str) -> None:
    for arguments, sentence in (
        (("ask", "--url", server), "there is no question"),
        (("ask", "word " * 4000, "--url", server), "2048"),
        (("ask", "How many?", "--model", "nobody", "--url", server), "nobody"),
        (("ask", "How many?", "--url", "http://127.0.0.1:9"), "Is the server running?"),
        (("top", "--once", "--url", "http://127.0.0.1:9"), "Is the server running?"),
    ):
        result = run(*arguments)
        assert result.returncode == 1
        assert result.stderr.startswith("latentserve: ")
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr


def test_top_shows_what_happens_by_mode(server: str, asked: list[Question]) -> None:
    command = [sys.executable, "-m", "server.cli", "top", "--once", "--interval", "8", "--url", server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
        body = {"model": "demo", "mode": "latent", "stream": True, "messages": [{"role": "user", "content": asked[0].question}]}
        while top.poll() is None:
            assert httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60).status_code == 200
        assert top.stdout is not None
        table = top.stdout.read()
    (latent,) = (line for line in table.splitlines() if "latent" in line and "ms" in line)
    assert latent.count("s") >= 4, table  # TTFT and the whole request, at two quantiles
    assert "waiting, KV cache" in table
