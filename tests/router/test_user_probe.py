"""Files of probes: what is read from them, and what is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from router.policy import RouterError
from router.probe import UserProbe, read_features
from router.user_probe import ProbeFile, output_names, read_probes

SIZE = 6


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * SIZE, 5), nn.ReLU(), nn.Linear(5, 2))


def write(path: Path, module: nn.Module, metadata: dict[str, str] | None = None, beside: Any = None) -> Path:
    save_file(module.state_dict(), path, metadata)
    if beside is not None:
        path.with_suffix(".json").write_text(beside if isinstance(beside, str) else json.dumps(beside))
    return path


def test_a_linear_one_needs_no_words(tmp_path: Path) -> None:
    linear = nn.Linear(SIZE, 1)
    file = ProbeFile.read(write(tmp_path / "polite 1.safetensors", linear, {"format": "pt"}))
    assert (file.config.features, file.config.outputs, file.sizes) == (("last",), ("polite_1",), (SIZE, 1))
    states = torch.randn(3, 1, 4, SIZE)
    features = read_features(file.config.features, states, torch.ones(3, 4, dtype=torch.bool), None)
    assert torch.allclose(UserProbe(file)(features), linear(states[:, 0, -1]).sigmoid())


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_an_mlp_says_what_it_reads_inside_or_beside(tmp_path: Path, where: str) -> None:
    inside = {"features": "mean, latents", "outputs": "a,b", "activation": "identity"}
    beside = {"features": ["mean", "latents"], "outputs": ["a", "b"], "activation": "identity"}
    module = mlp()
    path = write(tmp_path / "x.safetensors", module, *((inside,) if where == "inside" else (None, beside)))
    (file,) = read_probes([path])
    assert output_names([file]) == ("a", "b")
    file.check(SIZE, has_latents=True)
    states, mask, z = torch.randn(2, 1, 3, SIZE), torch.tensor([[False, True, True]] * 2), torch.randn(2, 32, SIZE)
    expected = module(torch.cat([states[:, 0, 1:].mean(1), z[:, :16].mean(1)], dim=1))
    found = UserProbe(file)(read_features(file.config.features, states, mask, z))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "beside", "says"),
    [
        (nn.Linear(SIZE, 2), None, "has 2 outputs, and names for 0"),
        (nn.Linear(SIZE, 1), {"features": ["first"]}, r"features.0 Input should be 'last'"),
        (nn.Linear(SIZE, 1), {"threshold": 0.5}, "threshold Extra inputs are not permitted"),
        (nn.Linear(SIZE, 1), {"outputs": ["<b>"]}, "must be names"),
        (nn.Linear(SIZE, 1), {"features": []}, "at least 1"),
        (nn.Linear(SIZE, 1), "{", "cannot be read as safetensors with JSON"),
        (nn.Linear(SIZE, 1), [], "cannot be used"),
        (nn.Linear(SIZE, 1, bias=False), None, "holds weight: it has to be the state_dict of a torch.nn.Linear"),
        (nn.Sequential(nn.Linear(SIZE, 4), nn.ReLU(), nn.Linear(5, 1)), None, "has to be the state_dict"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, module: nn.Module, beside: Any, says: str) -> None:
    with pytest.raises(RouterError, match=says):
        read_probes([write(tmp_path / "x.safetensors", module, None, beside)])


def test_a_pickle_is_refused_and_so_is_a_name_that_is_taken(tmp_path: Path) -> None:
    pickle = tmp_path / "x.pt"
    torch.save(nn.Linear(SIZE, 1).state_dict(), pickle)
    with pytest.raises(RouterError, match="cannot be read as safetensors"):
        read_probes([pickle])
    with pytest.raises(RouterError, match="cannot be read as safetensors"):
        read_probes([tmp_path / "none.safetensors"])
    path = write(tmp_path / "x.safetensors", nn.Linear(SIZE, 1))
    with pytest.raises(RouterError, match="Two outputs of --probe are called 'x'"):
        read_probes([path, path])


def test_it_has_to_fit_the_base(tmp_path: Path) -> None:
    file = ProbeFile.read(write(tmp_path / "x.safetensors", mlp(), {"features": "last,latents", "outputs": "a,b"}))
    with pytest.raises(RouterError, match="takes 12 values, and last, latents of this base have 8"):
        file.check(4, has_latents=True)
    with pytest.raises(RouterError, match="there is no bundle with a network"):
        file.check(SIZE, has_latents=False)
