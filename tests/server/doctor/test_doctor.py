"""`latentserve doctor`, on this machine."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reasoning_net.bundle import Bundle, fingerprint
from reasoning_net.demo import DEMO_BUNDLE, DEMO_MODEL
from reasoning_net.layout import Layout
from reasoning_net.manifest import Manifest
from server.cli import main
from server.doctor import Finding, machine, memory, software, table
from tests.bases import write_base


@pytest.fixture(autouse=True)
def _no_engine_was_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What offline stages put into the environment of this process."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def examined(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    """What it finds, by subject; it ends with that status."""
    if status:
        with pytest.raises(SystemExit) as end:
            main(["doctor", "--json", *arguments])
        assert end.value.code == status
    else:
        main(["doctor", "--json", *arguments])
    return {one["subject"]: SimpleNamespace(**one) for one in json.loads(capsys.readouterr().out)}


def test_the_demo_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys)
    assert {one.level for one in found.values()} <= {"ok", "warning"}
    assert found["vLLM"].text == "vllm-cpu 0.32.0"
    assert Bundle.load(DEMO_BUNDLE).fingerprint() in found["bundle"].text
    assert found["dtype"].text.startswith("float32")
    # What the engine reports of the same settings: deploy/README.md, Growth.
    assert found["KV cache"].text.startswith(
        "279,616 tokens in 1.0 GiB (3,072 bytes of keys and values and 768 of hidden states"
    )


def test_a_bundle_of_another_base_and_one_that_is_nowhere(capsys: pytest.CaptureFixture[str], tiny_base: Path) -> None:
    found = examined(capsys, "--model", str(tiny_base), "--bundle", str(DEMO_BUNDLE), status=1)
    assert found["bundle"].level == "error"
    assert "hidden_size: bundle 192, model 64" in found["bundle"].text
    found = examined(capsys, "--model", str(tiny_base), "--bundle", "nobody/nothing", status=1)
    assert "the hub cannot be reached" in found["bundle"].text


def test_a_base_without_a_bundle(capsys: pytest.CaptureFixture[str], tiny_base: Path) -> None:
    found = examined(capsys, "--model", str(tiny_base))
    assert (found["bundle"].level, found["layout"].level) == ("warning", "ok")
    assert "router fit" in found["bundle"].mend
    assert found["dtype"].text.startswith("bfloat16")


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no model in" in examined(capsys, "--model", str(tmp_path), status=1)["model"].text
    found = examined(capsys, "--model", "nobody/nothing", status=1)["model"]  # the tests run with HF_HUB_OFFLINE
    assert (found.mend, "HF_HUB_OFFLINE is set" in found.text) == ("hf download nobody/nothing", True)
    shutil.copytree(DEMO_MODEL, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{")
    assert "config.json cannot be read" in examined(capsys, "--model", str(tmp_path / "base"), status=1)["model"].text
    (tmp_path / "base" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    assert "lacks model-2.safetensors" in examined(capsys, "--model", str(tmp_path / "base"), status=1)["model"].text


def test_what_does_not_fit_into_memory(capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys, "--kv-cache-gib", "100000", status=1)["needs"]
    assert "are free" in found.text
    cache = examined(capsys, "--max-model-len", "1000000", status=1)["KV cache"]
    assert cache.mend == "--kv-cache-gib 4, or --max-model-len 279616"


def test_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = examined(capsys, "--device", "cuda", status=1)
    assert (found["device"].level, found["device"].mend) == ("error", "make serve DEVICE=cuda")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert examined(capsys, status=1)["runner"].level == "error"


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_a_base_of_another_kind(capsys: pytest.CaptureFixture[str], tmp_path: Path, shape: str) -> None:
    found = examined(capsys, "--model", str(write_base(shape, tmp_path / "base", "none")))
    assert found["layout"].text.startswith("no think tags, so answers are direct")
    assert "256 bytes of keys and values" in found["KV cache"].text  # 2 · 2 layers · one head of 32 · 2 bytes


def test_a_bundle_without_a_probe(capsys: pytest.CaptureFixture[str], tiny_base: Path, tmp_path: Path) -> None:
    Bundle(tmp_path / "bundle", Manifest(base=fingerprint(str(tiny_base)), layout=Layout())).save({})
    found = examined(capsys, "--model", str(tiny_base), "--bundle", str(tmp_path / "bundle"))
    assert "no network, no probe, not calibrated" in found["bundle"].text
    assert "router fit" in found["bundle"].mend


def test_gpus_are_asked_of_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    lines = [
        "NVIDIA H100, 81559, 80000, 9.0, 570.1",
        "Tesla V100, 16384, 16000, 7.0, 570.1",
        "Tesla T4, 15360, 15000, 7.5, 570.1",
    ]
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in [*lines, "Old, [N/A], [N/A], [N/A], 570.1"]))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.gpus()
    assert [gpu.name for gpu in found] == ["NVIDIA H100", "Tesla V100", "Tesla T4"]
    levels = {one.subject: one.level for one in machine.examine("cuda", found) if one.subject.startswith("GPU")}
    assert levels == {"GPU 0": "ok", "GPU 1": "error", "GPU 2": "warning"}
    assert [one.level for one in software.examine("cpu", "auto", found) if one.subject == "device"] == ["warning"]


@pytest.mark.parametrize(
    ("config", "bytes_per_token"),
    [
        # Qwen3-1.7B: 2 · 28 layers · 8 heads · 128 · 2 bytes
        (
            {
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "hidden_size": 2048,
                "head_dim": 128,
            },
            114688,
        ),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 512),
        ({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}}, 512),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2304),
    ],
)
def test_bytes_of_a_token_in_the_cache(config: dict[str, Any], bytes_per_token: int) -> None:
    assert memory.kv_bytes_per_token(config, 2) == bytes_per_token


def test_dtypes_as_vllm_takes_them() -> None:
    assert memory.served_dtype({"torch_dtype": "float32"}, "cpu", is_demo=False) == "bfloat16"
    assert memory.served_dtype({"dtype": "float16"}, "cuda", (9, 0), is_demo=False) == "float16"
    assert memory.served_dtype({"dtype": "bfloat16"}, "cuda", (7, 5), is_demo=False) == "float16"


def test_the_table_says_what_to_do() -> None:
    text = table([Finding("ok", "a", "fine"), Finding("error", "bb", "missing", "apt install bb")])
    assert text.splitlines() == ["ok       a   fine", "error    bb  missing", "             → apt install bb", "", "1 error."]
