"""An adapter on the base, behind an alias, beside the base's own modes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase
from reasoning_net.lora import Adapter
from reasoning_net.rollouts import Sampling
from reasoning_net.stages.pear import explicit
from reasoning_net.tasks import Example
from tests.conftest import running_server

NAME = "demo:brief"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenBase, Path]:
    """One that changes what the base writes."""
    torch.manual_seed(0)
    base, directory = FrozenBase(str(DEMO_MODEL)), tmp_path_factory.mktemp("adapter")
    adapter = Adapter(base.model, 8, 16.0)
    with torch.no_grad():
        for part in adapter.parts:
            part.b.normal_(std=0.06)
    adapter.save(directory, str(DEMO_MODEL))
    return base, directory


@pytest.fixture(scope="module")
def server(adapted: tuple[FrozenBase, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ("--enable-lora", "--lora-modules", f"{NAME}={adapted[1]}")
    with running_server(tmp_path_factory.mktemp("server") / "log.txt", *flags) as url:
        yield url


def post(server: str, question: Question, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": question.question}], "temperature": 0, "max_tokens": 60}
    return httpx.post(f"{server}/v1/chat/completions", json=body | fields, timeout=60)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    return (message["reasoning"] or "") + (message["content"] or "")


def test_an_adapter_thinks_as_in_transformers_and_leaves_the_base_as_it_is(
    server: str, adapted: tuple[FrozenBase, Path], asked: list[Question]
) -> None:
    base, plain = adapted[0], FrozenBase(str(DEMO_MODEL))
    layout = base.layout().token_ids(base.tokenizer)
    examples = [Example([{"role": "user", "content": one.question}], "", str(one.answer), 1, "") for one in asked[:3]]
    expected = {
        name: [reply.text.removeprefix("<think>") for (reply,) in explicit(of, layout, examples, Sampling(max_tokens=60))]
        for name, of in ((NAME, base), ("demo:explicit", plain))
    }
    assert expected[NAME] != expected["demo:explicit"]
    for _ in range(2):  # the second time from the prefix cache, which they do not share
        for name, texts in expected.items():
            assert [text(post(server, one, name)).strip() for one in asked[:3]] == [one.strip() for one in texts]
    assert post(server, asked[0], NAME).json()["route"]["mode"] == "explicit"


def test_an_adapter_has_no_latents_and_the_base_has(server: str, asked: list[Question]) -> None:
    refused = post(server, asked[0], NAME, mode="latent")
    assert refused.status_code == 400
    assert "is an adapter" in refused.json()["error"]["message"]
    assert str(asked[0].answer) in text(post(server, asked[0], "demo:latent"))
    names = [model["id"] for model in httpx.get(f"{server}/v1/models").json()["data"]]
    assert {"demo", "demo:latent", NAME} <= set(names)
