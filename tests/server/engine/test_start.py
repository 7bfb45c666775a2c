"""Whose flag wins: the user's, then the file's, then ours."""

from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from reasoning_net.bundle import Bundle
from server.engine.errors import ConfigurationError
from server.engine.start import adapters, add_aliases, parse_vllm_args
from server.launch import _read
from server.settings import Settings, split_file


def parsed(bundle: Bundle | None, *flags: str, **settings: object) -> Namespace:
    """As `launch.run` does it."""
    return parse_vllm_args(Settings(**settings).completed(_read(split_file(flags)[0])), flags, bundle)


def test_flags_come_before_the_file_and_that_before_our_defaults(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    content = {
        "port": 7001, "host": "0.0.0.0", "max_model_len": 700, "block-size": 64, "enforce-eager": False,
        "default-mode": "latent", "structured-outputs-config": {"backend": "guidance"}, "served-model-name": ["a", "b"],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    for words in (["--config", str(file)], [f"--config={file}"]):
        args = parsed(bundle, "--block-size", "96", *words, host="127.0.0.1")
        assert (args.port, args.host) == (7001, "127.0.0.1")
        assert (args.block_size, args.max_model_len, args.dtype) == (96, 700, "float32")
        assert args.served_model_name == ["a", "b"]
        assert not args.enforce_eager
        assert args.structured_outputs_config.backend == "guidance"
    ours = parsed(bundle)
    assert (ours.port, ours.block_size, ours.max_model_len, ours.enforce_eager) == (8000, 32, 2048, True)
    assert ours.served_model_name == ["demo"]


def test_the_files_model(tmp_path: Path) -> None:
    file = tmp_path / "serve.yml"
    file.write_text("model: some/other\n")
    assert parsed(None, "--config", str(file)).model == "some/other"
    assert parsed(None, "--config", str(file), model="given").model == "given"
    assert parsed(None, "--config", str(file)).served_model_name == ["some/other"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--max-modl-len", "512"], r"There is no flag --max-modl-len\. Did you mean --max-model-len\?"),
        (["--defualt-mode=latent"], r"Did you mean --default-mode\?"),
        (["--max-model-len", "some"], "Argument --max-model-len"),
        (["--enable-lora", "--lora-target-modules", "embed_tokens"], "latents need the base's own. Name others"),
        (["Qwen/Qwen3-1.7B"], r"Qwen/Qwen3-1.7B is no flag\. A model is named with --model"),
    ],
)
def test_flags_that_nobody_knows(bundle: Bundle, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        parsed(bundle, *flags)
    assert "usage" not in "".join(capsys.readouterr())


def test_adapters_leave_the_embedding_alone_and_take_no_mode_s_name(bundle: Bundle) -> None:
    flags = ("--enable-lora", "--lora-modules")
    args = parsed(bundle, *flags, "demo:brief=runs/brief")
    assert args.lora_target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert parsed(bundle).lora_target_modules is None
    add_aliases(args, ["latent"])
    assert adapters(args) == {"demo:brief"}
    with pytest.raises(ConfigurationError, match="demo:latent: that is the base, or a mode of it"):
        add_aliases(parsed(bundle, *flags, "demo:latent=runs/brief"), ["latent"])
