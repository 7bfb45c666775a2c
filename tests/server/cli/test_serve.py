"""Settings of `serve`: flags, environment and file; what is vLLM's goes on to vLLM; and what is refused before it is loaded."""

import json
import shutil
from pathlib import Path

import pytest

from server import launch
from server.cli import main
from server.engine.errors import ConfigurationError
from server.settings import DEMO_BUNDLE, Settings
from tests.server.cli import failure


def test_every_setting_is_a_flag_and_the_rest_is_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Settings, tuple[str, ...]]] = []
    monkeypatch.setattr("server.cli.serve.run", lambda *arguments: served.append(arguments))
    monkeypatch.setenv("LATENTSERVE_KV_CACHE_GIB", "3")
    monkeypatch.setenv("LATENTSERVE_PORT", "1")
    main(["serve", "--max-model-len", "512", "--port", "2", "--enforce-eager", "--no-console", "--operator-key=k", "-tp", "2"])
    main(["serve"])
    (given, flags), (plain, none) = served
    assert flags == ("--max-model-len", "512", "--enforce-eager", "-tp", "2")
    assert (given.port, given.console, given.kv_cache_gib) == (2, False, 3)
    assert given.operator_key is not None
    assert given.operator_key.get_secret_value() == "k"
    assert (plain.port, none) == (1, ())


def test_flags_come_before_the_environment_that_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSERVE_HOST", "environment")
    settings = Settings(port=1).completed({"port": 2, "host": "file", "default-mode": "latent", "max-model-len": 9})
    assert (settings.port, settings.host, settings.default_mode, settings.device) == (1, "environment", "latent", "auto")


def test_several_probes_come_from_flags_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (Path("a.safetensors"), Path("b.safetensors"))
    served: list[Settings] = []
    monkeypatch.setattr("server.cli.serve.run", lambda settings, flags: served.append(settings))
    main(["serve", "--probe", "a.safetensors", "--probe", "b.safetensors", "--effort-budgets", "low=16, high=64"])
    assert served[0].probe == both
    assert served[0].budgets_by_effort == {"low": 16, "high": 64}
    assert Settings().completed({"probe": ["a.safetensors", "b.safetensors"]}).probe == both
    monkeypatch.setenv("LATENTSERVE_PROBE", "a.safetensors,b.safetensors")
    assert Settings().probe == both


def test_what_is_refused_before_torch_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_many = "--num-latent-tokens is 10000, but the bundle's network computes at most 256"
    assert too_many in failure("serve", "--num-latent-tokens", "10000")
    with monkeypatch.context() as patch:
        patch.setenv("LATENTSERVE_NUM_LATENT_TOKENS", "10000")
        assert too_many in failure("serve")
        patch.setenv("LATENTSERVE_NUM_LATENT_TOKENS", "-1")
        assert "(or LATENTSERVE_NUM_LATENT_TOKENS) must be greater than 0" in failure("serve")
    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    manifest = json.loads((bundle / "bundle.json").read_text()) | {"calibration": None, "probe": None}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert "router fit" in failure("serve", "--bundle", str(bundle), "--policy", "utility")
    assert "--effort-budgets must give low a number of tokens" in failure("serve", "--effort-budgets", "low", status=2)
    assert "--effort-budgets must name each effort at most once" in failure("serve", "--effort-budgets", "none=5", status=2)
    assert "--answer-reserve-tokens must be greater than 0" in failure("serve", "--answer-reserve-tokens", "0", status=2)
    assert "Fetch it first: `hf download nobody/nothing`" in failure(
        "serve", "--model", "nobody/nothing", "--bundle", str(bundle)
    )
    assert "none.pt cannot be read as safetensors" in failure("serve", "--probe", str(tmp_path / "none.pt"))
    assert "none.json cannot be used: No such file" in failure("serve", "--router-file", str(tmp_path / "none.json"))
    (tmp_path / "router.json").write_text('{"policy": "utility"}')
    router_file = ("--router-file", str(tmp_path / "router.json"))
    assert "cannot be used: The policy utility needs" in failure("serve", "--bundle", str(bundle), *router_file)
    assert "remove --policy" in failure("serve", "--policy", "utility", *router_file)
    assert "--api-keys-file" in failure("serve", "--quota-store", "redis://localhost:6379/0")
    (tmp_path / "keys.yaml").write_text("keys: []")
    keys = ("--api-keys-file", str(tmp_path / "keys.yaml"))
    assert "must be the URI of a Redis" in failure("serve", *keys, "--quota-store", "memory://")
    assert "cannot be read" in failure("serve", "--config", str(tmp_path / "none.yaml"))
    (tmp_path / "port.yaml").write_text("port: many")
    assert "--port must be a valid integer" in failure("serve", "--config", str(tmp_path / "port.yaml"))
    with pytest.raises(ConfigurationError, match="there is no bundle with a network"):
        launch._check_bundle(Settings(model="another", num_latent_tokens=4))
