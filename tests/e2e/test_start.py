"""Starting: what can go wrong says so, and a server without a bundle is useful."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

from reasoning_net.bundle import Bundle
from reasoning_net.demo.questions import Question
from reasoning_net.frozen import FrozenBase, Prompt
from router.policies.diffadapt import Strategies, Strategy
from router.probe import Probe, ProbeConfig
from router.probe_config import CLASSES
from server.settings import DEMO_BUNDLE
from tests.conftest import running_server
from tests.server.cli import failure


def start(*flags: str) -> str:
    """The last words of a server that cannot start, in this process."""
    return failure("serve", *flags)


def test_missing_model(tmp_path: Path) -> None:
    assert "there is no model in" in start("--model", str(tmp_path))


def test_missing_bundle(tmp_path: Path) -> None:
    assert "has no bundle.json" in start("--bundle", str(tmp_path))


def test_bundle_of_another_base(tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, other)
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["base"]["hidden_size"] = 4096
    (other / "bundle.json").write_text(json.dumps(manifest))
    assert "hidden_size: bundle 4096, model 192" in start("--bundle", str(other))


def test_unknown_bundle_field(tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, other)
    manifest = json.loads((other / "bundle.json").read_text()) | {"surprise": 1}
    (other / "bundle.json").write_text(json.dumps(manifest))
    assert "surprise" in start("--bundle", str(other))


def test_broken_bundles_and_misspelt_flags_are_one_sentence(tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, other)
    weights = other / "reasoning_net.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights} cannot be read" in start("--bundle", str(other))
    command = [sys.executable, "-m", "server.cli", "serve", "--max-modl-len", "512"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("latentserve: ")]
    assert "There is no flag --max-modl-len. Did you mean --max-model-len?" in said


def test_policies_that_cannot_be_had(tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, other)
    manifest = json.loads((other / "bundle.json").read_text()) | {"calibration": None, "probe": None}
    (other / "bundle.json").write_text(json.dumps(manifest))
    assert "router fit" in start("--bundle", str(other), "--policy", "utility")


def own_probe(directory: Path, hidden_size: int) -> tuple[Callable[[Prompt], float], Path]:
    """One of the last and the mean state: what it says of a prompt, and its file."""
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(2 * hidden_size, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    save_file(module.state_dict(), path := directory / "own.safetensors", {"features": "last,mean"})

    def said(prompt: Prompt) -> float:
        states = prompt.hidden_states[0]
        with torch.no_grad():
            return float(module(torch.cat([states[-1], states.mean(0)])).sigmoid())

    return said, path


def test_probes_that_cannot_be_had(tmp_path: Path) -> None:
    save_file(torch.nn.Linear(200, 1).state_dict(), path := tmp_path / "own.safetensors")
    assert "takes 200 values, and last of this base have 192" in start("--probe", str(path))
    path.write_bytes(b"pickle")
    assert "own.safetensors cannot be read as safetensors" in start("--probe", str(path))


def test_a_probe_may_read_earlier_layers_and_a_bundle_have_strategies_of_its_own(
    tmp_path: Path, base: FrozenBase, asked: list[Question]
) -> None:
    directory, layers, suffix = tmp_path / "bundle", (2, 4), "<think>\nI am quick"
    shutil.copytree(DEMO_BUNDLE, directory)
    strategy = Strategy(temperature=0.0, budget=1.0, suffix=suffix)
    calibration = Bundle.load(directory).manifest.calibration
    calibration = calibration.model_copy(update={"strategies": Strategies(easy=strategy, normal=strategy, hard=strategy)})
    torch.manual_seed(0)
    probe = Probe(ProbeConfig(base_hidden_size=base.hidden_size, features=("last", "mean"), layers=layers, classes=True))
    probe.mix.data = torch.tensor([0.0, 1.0, 2.0])
    probe = Bundle.load(directory).update({"probe": probe}, probe=probe.config, calibration=calibration).probe()
    own, file = own_probe(tmp_path, base.hidden_size)
    with running_server(tmp_path / "log.txt", "--bundle", str(directory), "--probe", str(file)) as url:
        for question in asked[:3]:
            messages = [{"role": "user", "content": question.question}]
            routed = httpx.post(f"{url}/v1/route", json={"model": "demo", "messages": messages}, timeout=60).json()
            prompt = base.read([base.prompt_ids(messages)], layers)
            with torch.no_grad():
                expected = probe.scores(probe.features(prompt.all_states, prompt.mask, None))
            for target, value in expected.items():
                assert routed["route"]["scores"][target] == pytest.approx(float(value), rel=0.02, abs=1e-3)
            assert routed["route"]["scores"]["probes"] == pytest.approx({"own": own(prompt)}, rel=0.02, abs=1e-3)
        body = {"model": "demo", "max_tokens": 16}
        chat = body | {"messages": messages, "mode": "auto", "router": {"policy": "diffadapt"}}
        answered = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60).json()
        assert answered["route"]["reason"] == max(CLASSES, key=lambda name: float(expected[name]))
        thought = answered["choices"][0]["message"]
        token_ids = [*base.prompt_ids(messages), *base.tokenizer.encode(suffix, add_special_tokens=False)]
        raw = body | {"prompt": token_ids, "temperature": 0}
        completed = httpx.post(f"{url}/v1/completions", json=raw, timeout=60).json()["choices"][0]["text"]
        assert thought["reasoning"] == completed.replace("<think>", "") != ""
    assert "--enforce-eager" in start("--bundle", str(directory), "--no-enforce-eager")


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSERVE_KV_CACHE_GIB", "100000")
    assert "100000 GiB, but only" in start()
    assert "99999 GiB, but only" in start("--kv-cache-gib", "99999")


def test_occupied_port() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in start("--port", str(port))


@pytest.mark.parametrize("flags", [["--pipeline-parallel-size", "2"], ["--data-parallel-size", "2"]])
def test_unsupported_parallelism(flags: list[str]) -> None:
    assert "is not supported" in start(*flags)


def test_a_draft_model_is_refused() -> None:
    assert "method eagle is not supported" in start("--speculative-config", '{"method": "eagle", "model": "x"}')


def test_too_few_log_probabilities_for_a_verdict() -> None:
    assert "--max-logprobs 5 is too few" in start("--max-logprobs", "5")


def test_a_helper_that_is_not_there() -> None:
    assert "--helper http://127.0.0.1:9 cannot be asked for its model" in start("--helper", "http://127.0.0.1:9")
