"""What the commands have in common: options from configurations, and mistakes that end in one sentence."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from reasoning_net.stages import sft
from server.cli import COMMANDS, create_app, main
from tests.server.cli import failure, run


def test_bad_input(tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "out"))
    assert "There is no model in" in failure("train", "sft", "--model", str(tmp_path), *output)
    assert "There is no file" in failure("train", "traces", "--data", "missing.jsonl", *output)
    assert "`latentserve train traces` writes one." in failure("analyse", "importance", "--traces", str(tmp_path), *output)
    assert "multiple of 32" in failure("train", "sft", "--hidden-size", "100", *output)
    assert "no reasoning network" in failure("train", "grpo", "--init", str(tmp_path), *output)
    assert "has no bundle.json" in failure("router", "fit", "--bundle", str(tmp_path))
    assert "is no arm" in failure("eval", "--modes", "fast")
    assert "Is the server running?" in failure("eval", "--n", "1", "--url", "http://127.0.0.1:9/v1")


def test_a_layout_without_a_place_for_latents_is_refused_before_training(tiny_base: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout.json"
    command = ("train", "sft", "--model", str(tiny_base), "--output", str(tmp_path / "out"), "--layout", str(layout))
    layout.write_text("{}")
    assert "reserves no token for latents" in failure(*command)
    layout.write_text('{"direkt": ""}')
    assert "layout.json is no layout: direkt" in failure(*command)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train sft --output o --conditioner some", "--conditioner"),
        ("train sft --output o --save-every 9", "--save-every must be a multiple of 8, not 9."),
        ("train sft --output o --accumulate 0", "--accumulate must be greater than 0, not 0."),
        ("train sft --output o --stps 8", "Did you mean --steps?"),
        ("train sft --output o surplus", "surplus"),
        ("train sft", "--output"),
        ("train grpo --init i --output o --rollouts 1", "--rollouts must be greater than or equal to 2, not 1."),
        ("train sweep --output o --num-latents 4,b", "--num-latents"),
        ("train sweep --output o --conditioners last,some", "--conditioners must be 'last', 'all' or 'all+embeddings'"),
        ("train traces --output o --compress keep=3", "--compress must be less than or equal to 1, not"),
        ("train traces --output o --compress some", "--compress"),
        ("router calibrate --bundle b --explicit-share 0.1 --mean-tokens 9", "give exactly one of"),
        ("router calibrate --bundle b --explicit-share 3", "--explicit-share must be less than or equal to 1"),
        ("serve --device tpu", "--device must be 'auto', 'cpu' or 'cuda', not 'tpu'."),
        ("serve --default-mode bogus", "--default-mode must be 'auto', 'direct', 'latent', 'explicit' or"),
        ("serve --policy bogus", "--policy must be 'utility', 'diffadapt', 'entropy',"),
        ("tain sft", "Unknown command"),
    ],
)  # fmt: skip
def test_values_and_options_that_cannot_be(arguments: str, sentence: str) -> None:
    assert sentence in failure(*arguments.split(), status=2)


def test_a_calibration_that_asks_for_nothing() -> None:
    said = "give one of --explicit-share, --accuracy-floor, --accuracy-loss, --mean-tokens, --p95-seconds, or --exit-loss."
    assert said in failure("router", "calibrate", "--bundle", "b")


def test_a_base_without_a_chat_template(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").unlink()
    assert "no chat template" in failure("train", "sft", "--model", str(base), "--output", str(tmp_path / "out"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/7")

    monkeypatch.setattr(sft, "main", no_space)
    with pytest.raises(RuntimeError, match="data/7"):  # a bug keeps its traceback
        main(["train", "sft", "--output", str(tmp_path)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "is full. Free some space" in failure("train", "sft", "--output", str(tmp_path))


@pytest.mark.parametrize("command", [name for name in COMMANDS if name])
def test_every_command_explains_itself_and_every_option(command: str) -> None:
    assert COMMANDS[command][:30] in run(*command.split(), "--help").stdout
    app = create_app()
    for part in command.split():
        app = app[part]
    if app.default_command:
        options = [one for one in app.assemble_argument_collection(parse_docstring=True) if one.show and not one.children]
        assert options
        assert not [one.name for one in options if not one.parameter.help]


def test_a_configurations_fields_are_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[sft.SftConfig] = []
    monkeypatch.setattr(sft, "main", asked.append)
    main("train sft --output o --data demo:riding --muon-lr 0.1 --layout l.json --checkpointing --no-whole".split())
    assert asked == [
        sft.SftConfig(
            output=Path("o"), layout=Path("l.json"), checkpointing=True, task=sft.TaskSpec("demo:riding"),
            optimizer=sft.SftOptimizer(muon_lr=0.1),
        )
    ]  # fmt: skip


def test_help_and_settings_need_neither_torch_nor_vllm() -> None:
    script = (
        "import sys; from server.cli import create_app\n"
        "for words in (['--help'], ['serve', '--help'], ['ask', '--help'], ['--version']):\n"
        "    create_app()(words, result_action='return_value')\n"
        "import server.launch; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"
    assert "--install-completion" in result.stdout
