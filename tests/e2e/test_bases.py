"""A base without think tags, of another shape than the demo's: what a server offers of it, and what it refuses by name.

The other shapes are in tests/long/bases.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.bundle import Bundle
from tests.bases import first_of_latent_answer, served_first, write_base, write_bundle
from tests.conftest import running_server

CHAT = "/v1/chat/completions"
PROMPT = "Let's think step by step."
QUESTION = "Tom has 7 pens. He buys 2 pens. How many pens does Tom have now?"
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base("llama", tmp_path_factory.mktemp("plain") / "base", "none")


@pytest.fixture(scope="module")
def plain(base: Path) -> Iterator[str]:
    """With a network, without a probe and without a thinking prompt."""
    bundle = write_bundle(base, base.parent / "bundle")
    flags = ("--model", str(base), "--bundle", str(bundle.directory), "--served-model-name", "base", "--max-model-len", "512")
    with running_server(base.parent / "log.txt", *flags, "--dtype", "float32", "--enforce-eager") as url:
        yield url


def ask(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "base", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 8}
    return httpx.post(url + CHAT, json=body | fields, timeout=60)


def test_what_a_base_without_think_tags_offers(plain: str, base: Path) -> None:
    assert {m["id"] for m in httpx.get(f"{plain}/v1/models").json()["data"]} == {
        "base",
        "base:auto",
        "base:direct",
        "base:latent",
    }
    advice = httpx.get(f"{plain}/v1/router").json()["advice"]
    assert "no think tags" in advice
    log = (base.parent / "log.txt").read_text()
    assert log.count(advice) == 1
    assert '"mode": "latent"' in log, "the banner names a mode that there is"
    for mode in ("direct", "latent", "auto"):
        answer = ask(plain, mode=mode).json()
        assert answer["route"]["mode"] == ("latent" if mode == "auto" else mode)
        message = answer["choices"][0]["message"]
        assert message["content"], "not taken for a chain"
        assert message.get("reasoning") is None
    assert ask(plain, reasoning_effort="high").json()["route"]["reason"] == "no_thinking"


def test_latents_stand_where_transformers_has_them(plain: str, base: Path) -> None:
    assert httpx.get(f"{plain}/ready").json()["parity"] > 0.999
    expected = first_of_latent_answer(base, Bundle.load(base.parent / "bundle"), QUESTION)
    assert served_first(plain, QUESTION, "latent") == pytest.approx(expected, abs=0.05)
    assert served_first(plain, QUESTION, "direct") != pytest.approx(expected, abs=0.05)


def test_a_schema_is_kept_to(plain: str) -> None:
    for mode in ("direct", "auto"):
        content = ask(plain, mode=mode, response_format=SCHEMA, max_tokens=40).json()["choices"][0]["message"]["content"]
        assert content.lstrip().startswith("{"), "not white space, or a text of the base's own"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"mode": "explicit"}, "mode", "--thinking-prompt"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "mode", "--thinking-prompt"),
        ({"mode": "auto", "thinking_token_budget": 5}, "thinking_token_budget", "one token each"),
        ({"mode": "auto", "exit": True}, "exit", "one token each"),
        ({"mode": "auto", "reasoning": "brief"}, "reasoning", "one token each"),
        ({"mode": "latent", "num_latent_tokens": 9}, "num_latent_tokens", "between 1 and 8"),
    ],
)
def test_what_would_do_nothing_is_refused(plain: str, fields: dict[str, Any], param: str, says: str) -> None:
    response = ask(plain, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]
    assert ask(plain, mode="latent").status_code == 200, "the engine lives"
