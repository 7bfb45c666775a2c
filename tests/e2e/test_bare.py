"""A server without a bundle, of the weak base: what it offers, and how a stronger model's server helps it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase, Prompt
from server.settings import DEMO_MODEL
from tests.conftest import running_server
from tests.e2e.test_start import own_probe

CHAT = "/v1/chat/completions"


WEAK = DEMO_MODEL.parent / "weak"


@pytest.fixture(scope="module")
def weak() -> FrozenBase:
    return FrozenBase(WEAK)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bare")


@pytest.fixture(scope="module")
def own(weak: FrozenBase, directory: Path) -> tuple[Callable[[Prompt], float], Path]:
    return own_probe(directory, weak.hidden_size)


@pytest.fixture(scope="module")
def bare(server: str, directory: Path, own: tuple[Callable[[Prompt], float], Path]) -> Iterator[str]:
    model = directory / "weak"
    shutil.copytree(WEAK, model)
    flags = ("--model", str(model), "--served-model-name", "plain", "--dtype", "float32", "--enforce-eager")
    flags += ("--helper", server, "--helper-share", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSERVE_REASONING_CONTENT", "true")
        patch.setenv("LATENTSERVE_PROBE", str(own[1]))
        with running_server(directory / "log.txt", *flags) as url:
            yield url


def ask(url: str, question: Question, **options: Any) -> dict[str, Any]:
    body = {"model": "plain", "messages": [{"role": "user", "content": question.question}], "temperature": 0} | options
    response = httpx.post(url + CHAT, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_without_a_bundle_entropy_routes_and_latent_is_refused(bare: str, asked: list[Question]) -> None:
    names = {m["id"] for m in httpx.get(f"{bare}/v1/models").json()["data"]}
    assert names == {"plain", "plain:auto", "plain:direct", "plain:explicit"}
    body = {"model": "plain", "messages": [{"role": "user", "content": asked[0].question}], "temperature": 0}
    latent = httpx.post(bare + CHAT, json=body | {"mode": "latent"}, timeout=60)
    assert latent.status_code == 400
    assert "no reasoning network" in latent.json()["error"]["message"]
    route = ask(bare, asked[0])["route"]
    assert route["mode"] in ("direct", "explicit")
    assert route["reason"] in ("entropy_low", "entropy_high")
    assert route["score"] >= 0
    thinking = body | {"mode": "explicit", "max_tokens": 12}
    message = httpx.post(bare + CHAT, json=thinking, timeout=60).json()["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] != ""
    stream = httpx.post(bare + CHAT, json=thinking | {"stream": True}, timeout=60).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning"]


def test_probes_of_ones_own_score_a_question_and_a_server_without_a_bundle_says_what_it_lacks(
    bare: str, asked: list[Question], weak: FrozenBase, own: tuple[Callable[[Prompt], float], Path], directory: Path
) -> None:
    for question in asked[:8]:
        messages = [{"role": "user", "content": question.question}]
        for _ in range(2):  # the second time X is cached
            routed = httpx.post(f"{bare}/v1/route", json={"model": "plain", "messages": messages}, timeout=60).json()["route"]
            assert set(routed["scores"]) == {"entropy", "probes"}
            expected = own[0](weak.read([weak.prompt_ids(messages)]))
            assert routed["scores"]["probes"] == pytest.approx({"own": expected}, rel=0.02, abs=1e-3)
    advice = httpx.get(f"{bare}/v1/router").json()["advice"]
    assert "latentserve router fit" in advice
    assert (directory / "log.txt").read_text().count(advice) == 1


def test_a_helper_writes_the_share_of_steps_that_is_asked_for(bare: str, asked: list[Question]) -> None:
    """Its tokenizer is another one: text goes over."""
    hardest = max(asked, key=lambda question: question.steps)
    alone = ask(bare, hardest, mode="explicit", helper=False)
    assert "helper" not in alone["route"]
    helped = ask(bare, hardest, mode="explicit", helper={"policy": "random", "share": 1.0})
    help_ = helped["route"]["helper"]
    assert (help_["failed"], help_["seconds"] > 0, help_["tokens"] > 0) == (0, True, True)
    assert help_["steps"] == help_["of"] > 1
    message = helped["choices"][0]["message"]
    assert f" {hardest.answer} " in message["content"], "the helper's chain is right"
    assert "think>" not in message["content"] + message["reasoning"]
    some = ask(bare, hardest, mode="explicit", helper={"policy": "glimp", "threshold": 0.0, "share": 0.3})["route"]["helper"]
    assert 0 < some["steps"] <= 0.3 * some["of"] + 1
    few = ask(bare, hardest, mode="explicit", helper={"policy": "random", "share": 1.0, "max_tokens": 30})["route"]["helper"]
    assert 0 < few["tokens"] <= 30
    assert few["of"] <= help_["of"]


def test_a_stream_and_a_limit_count_both_models_tokens(bare: str, asked: list[Question]) -> None:
    rule = {"policy": "random", "share": 1.0}
    cut = ask(bare, asked[0], mode="explicit", helper=rule, max_tokens=40)
    assert cut["usage"]["completion_tokens"] == 40
    assert cut["choices"][0]["finish_reason"] == "length"
    body = {"model": "plain:explicit", "messages": [{"role": "user", "content": asked[0].question}], "temperature": 0}
    whole = ask(bare, asked[0], mode="explicit", helper=rule)
    stream = httpx.post(bare + CHAT, json=body | {"helper": rule, "stream": True}, timeout=60).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == whole["choices"][0]["message"]["reasoning"]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "direct", "helper": True}, "chains in text"),
        ({"helper": {"policy": "oracle"}}, "helper.policy"),
        ({"helper": True, "exit": True}, "exit"),
        ({"helper": True, "n": 2}, "one answer"),
        ({"helper": True, "logprobs": True}, "log-probabilities"),
    ],
)
def test_what_cannot_be_is_refused(bare: str, asked: list[Question], fields: dict[str, Any], says: str) -> None:
    messages = [{"role": "user", "content": asked[0].question}]
    response = httpx.post(bare + CHAT, json={"model": "plain", "mode": "explicit", "messages": messages} | fields, timeout=60)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "helper"


def test_a_server_without_a_helper_says_so(server: str, asked: list[Question]) -> None:
    body = {"model": "demo", "mode": "explicit", "messages": [{"role": "user", "content": asked[0].question}], "helper": True}
    response = httpx.post(server + CHAT, json=body, timeout=60)
    assert response.status_code == 400
    assert "--helper URL" in response.json()["error"]["message"]
