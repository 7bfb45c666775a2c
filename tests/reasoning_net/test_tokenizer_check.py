"""Tokenizers: the demo's passes, and those that are made to fail are told apart, by what fails."""

import itertools
import json
import logging
import random
from pathlib import Path

import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from reasoning_net.bundle import Bundle
from reasoning_net.layout import Layout, default_layout
from reasoning_net.stages.pack import pack
from reasoning_net.tasks import DemoTask
from reasoning_net.tokenizer_check import Check, run, warning
from tests.server.cli import failure
from tests.server.cli import run as command


@pytest.fixture
def tokenizer(tiny_base: Path):
    return AutoTokenizer.from_pretrained(tiny_base)


def found(tokenizer) -> dict[str, Check]:
    examples = list(itertools.islice(DemoTask().examples(0, "test"), 20))
    checks = run(tokenizer, default_layout(tokenizer, len(tokenizer)), examples, random.Random(0))
    return {check.name.split(":")[-1].strip(): check for check in checks}


def test_the_demo_s_passes(tmp_path: Path) -> None:
    text = command("check", "--tokenizer", "--n", "20", "--output", str(tmp_path)).stdout
    assert text.startswith("Tokenizer: passed.")
    checks = {check["name"]: check for check in json.loads((tmp_path / "tokenizer.json").read_text())}
    assert checks["chains without 30% of their tokens"]["differ"] == 0
    assert checks["numbers of several tokens, with a blank"]["found"] == "100 of 1 token, 900 of 2 tokens"
    assert (tmp_path / "tokenizer.md").read_text() == text


def test_one_that_changes_texts(tokenizer) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("  ", " ")])
    checks = found(tokenizer)
    assert checks["encoded, decoded"].differ == checks["encoded, decoded"].tried
    assert "texts that are read again" in checks["encoded, decoded"].wrong
    assert checks["decoded, encoded"].differ > 20
    said = warning(tokenizer, default_layout(tokenizer, len(tokenizer)), has_latents=True)
    assert said
    assert "texts that are read again" in said


def test_one_whose_digits_are_tokens(tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.backend_tokenizer.pre_tokenizer])
    checks = found(tokenizer)
    assert "hints" in checks["numbers of several tokens, with a blank"].wrong
    layout = default_layout(tokenizer, len(tokenizer))
    assert "--milestones" in str(warning(tokenizer, layout, has_latents=True))
    assert warning(tokenizer, layout, has_latents=False) is None, "only latents are about numbers"


def test_pieces_that_are_another_token_once_they_are_joined(tokenizer) -> None:
    """As of a template that opens the thinking, and a layout that begins a line: two line breaks in a row are one token."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<think>\\n' }}"
    layout = Layout(direct="\n</think>\n\n", before_latents="")
    assert "at odds with mode direct" in str(warning(tokenizer, layout, has_latents=False))


def test_a_template_that_cannot_be_rendered_stops_nothing(tokenizer) -> None:
    layout = default_layout(tokenizer, len(tokenizer))
    tokenizer.chat_template = "{{ raise_exception('Only with a system prompt.') }}"
    assert "could not be checked (Only with a system prompt)" in str(warning(tokenizer, layout, has_latents=True))
    tokenizer.chat_template = None
    assert "no chat template" in str(warning(tokenizer, layout, has_latents=True))


def test_a_bundle_is_packed_with_a_warning(
    tiny_base: Path, tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    content = json.loads((base / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (base / "tokenizer.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        pack(str(base), tmp_path / "bundle", bundle.manifest.layout)
    assert [record.message for record in caplog.records if "at odds with" in record.message]


def test_nothing_to_check_and_no_tokenizer(tmp_path: Path) -> None:
    assert "nothing to check" in failure("check")
    assert "cannot be loaded" in failure("check", "--tokenizer", "--model", str(tmp_path))
