import json
import pickle
from pathlib import Path

import pytest
import torch

from reasoning_net.bundle import Bundle, BundleError
from reasoning_net.config import ReasoningNetConfig
from reasoning_net.layout import Layout
from reasoning_net.model import ReasoningNet
from reasoning_net.stages.pack import pack
from router.probe import Probe, ProbeConfig

NET = ReasoningNetConfig(
    base_hidden_size=64, num_latent_tokens=16, conditioner="all", hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=1, num_key_value_heads=1,
)  # fmt: skip
LAYOUT = Layout(placeholder_token_id=3)


@pytest.fixture
def packed(tiny_base: Path, tmp_path: Path) -> Bundle:
    bundle = pack(str(tiny_base), tmp_path / "bundle", LAYOUT, net=ReasoningNet(NET), num_latent_tokens=4)
    return with_probe(bundle)


def with_probe(bundle: Bundle) -> Bundle:
    """As `router fit` leaves it."""
    probe = Probe(ProbeConfig(base_hidden_size=64))
    bundle.update({"probe": probe}, probe=probe.config)
    return Bundle.load(bundle.directory)


def test_what_was_packed_is_loaded(packed: Bundle, tiny_base: Path) -> None:
    packed.check_base(str(tiny_base))
    net, probe, parity = packed.reasoning_net(), packed.probe(), packed.parity()
    assert net is not None and probe is not None and parity is not None  # noqa: PT018
    assert parity["latents"].shape == (16, 64)
    assert parity["hidden_state"].shape == (64,)
    assert packed.fingerprint() == Bundle.load(packed.directory).fingerprint()


def test_every_part_is_optional(tiny_base: Path, tmp_path: Path) -> None:
    alone = with_probe(pack(str(tiny_base), tmp_path / "bundle", LAYOUT))
    assert alone.reasoning_net() is None
    assert alone.probe() is not None


def change(bundle: Bundle, **fields: object) -> None:
    path = bundle.directory / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 99}, "version 99"),
        ({"colour": "red"}, "colour"),
        ({"layout": {"direct": 3}}, "layout.direct"),
        ({"num_latent_tokens": -5}, "num_latent_tokens must be greater than 0, not -5"),
        ({"num_latent_tokens": 999}, "num_latent_tokens is 999, but the bundle's network computes at most 16"),
        ({"reasoning_net": None}, "num_latent_tokens is for latents, but there is no reasoning_net"),
        ({"layout": {"placeholder_token_id": 999_999}}, "placeholder_token_id is 999999, but the base's vocabulary has 512"),
        ({"layout": {}}, "needs layout.placeholder_token_id"),
    ],
)
def test_unreadable_manifests_say_what_is_wrong(packed: Bundle, fields: dict[str, object], message: str) -> None:
    change(packed, **fields)
    with pytest.raises(BundleError, match=message):
        Bundle.load(packed.directory)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[1, 2]", b"{", b"[" * 100_000, b""])
def test_what_is_no_manifest(packed: Bundle, content: bytes) -> None:
    (packed.directory / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read"):
        Bundle.load(packed.directory)


@pytest.mark.parametrize("name", ["reasoning_net", "probe", "parity"])
def test_what_are_no_tensors(packed: Bundle, name: str) -> None:
    path = packed.directory / f"{name}.safetensors"
    for content in (path.read_bytes()[:-4], b"", pickle.dumps({"weight": [1.0]})):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=rf"{name}\.safetensors cannot be read") as refusal:
            Bundle.load(packed.directory)
        assert "\n" not in str(refusal.value)


def test_missing_and_misfit_weights(packed: Bundle) -> None:
    config = packed.manifest.reasoning_net
    assert config is not None
    change(packed, reasoning_net=config.model_dump() | {"hidden_size": 64})
    with pytest.raises(BundleError, match=r"does not fit .* which is \(32,\) and should be \(64,\)"):
        Bundle.load(packed.directory)
    change(packed, reasoning_net=config.model_dump())
    (packed.directory / "probe.safetensors").unlink()
    with pytest.raises(BundleError, match=r"probe\.safetensors is missing"):
        Bundle.load(packed.directory)


def test_another_base_is_refused_by_name_of_what_differs(packed: Bundle, tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + torch.tensor(0.5, dtype=torch.bfloat16)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match="weights: bundle"):
        packed.check_base(str(other))
