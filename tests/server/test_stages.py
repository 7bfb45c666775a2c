"""What can go wrong in a stage ends in one sentence."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from reasoning_net.stages import sft
from server.cli import app


def failure(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("latentserve: ")
    return last


def test_bad_input(tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "out"))
    assert "There is no model in" in failure("train", "sft", "--model", str(tmp_path), *output)
    assert "--conditioner must be one of last, all" in failure("train", "sft", "--conditioner", "some", *output)
    assert "There is no file" in failure("train", "traces", "--data", "missing.jsonl", *output)
    assert "multiple of 32" in failure("train", "sft", "--hidden-size", "100", *output)
    assert "no reasoning network" in failure("train", "grpo", "--init", str(tmp_path), *output)
    assert "has no bundle.json" in failure("router", "fit", "--bundle", str(tmp_path))
    assert "is no arm" in failure("eval", "--modes", "fast")


def test_a_base_without_a_chat_template(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").unlink()
    assert "no chat template" in failure("train", "sft", "--model", str(base), "--output", str(tmp_path / "out"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/7")

    monkeypatch.setattr(sft, "main", no_space)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "is full. Free some space" in failure("train", "sft", "--output", str(tmp_path))


def test_every_command_explains_itself() -> None:
    for command in (
        ["train", "sft"],
        ["train", "grpo"],
        ["train", "traces"],
        ["train", "sweep"],
        ["router", "fit"],
        ["bundle"],
    ):
        result = CliRunner().invoke(app, [*command, "--help"])
        assert result.exit_code == 0
        assert "--output" in result.output or "--bundle" in result.output
