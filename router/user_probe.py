"""A probe of an operator's own, as a file: `serve --probe FILE`. Apart from its network, for those who do not load it.

safetensors, with the weights of `torch.nn.Linear(F, A)`, or of `torch.nn.Sequential(Linear, ReLU, Linear)`, as their
`state_dict` names them. `ProbeFileConfig` stands in its metadata, as text with commas, or in a JSON file beside it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from router.policy import RouterError
from router.probe_config import Feature

_LINEAR, _MLP = (("weight", "bias"),), (("0.weight", "0.bias"), ("2.weight", "2.bias"))
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class ProbeFileConfig(BaseModel):
    """What is to be known beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[Feature, ...] = Field(("last",), min_length=1, description="What it reads, side by side.")
    outputs: tuple[str, ...] = Field((), description="Their names; of a single one, the file's by default.")
    activation: Literal["sigmoid", "identity"] = "sigmoid"

    @field_validator("features", "outputs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("outputs")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in value if not _NAME.fullmatch(name)]:
            raise ValueError(f"must be names of at most 64 letters, digits, dots, dashes and underscores, not {wrong[0]!r}")
        return value


@dataclass(frozen=True, slots=True)
class ProbeFile:
    path: Path
    config: ProbeFileConfig
    sizes: tuple[int, ...]
    """F, of the hidden layer if there is one, A."""

    @classmethod
    def read(cls, path: Path) -> "ProbeFile":
        """Raises `RouterError` for one that cannot be used, whatever the base."""
        try:
            with safe_open(path, framework="np") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                metadata: Any = {name: value for name, value in (file.metadata() or {}).items() if name != "format"}
            if (beside := path.with_suffix(".json")).is_file():
                metadata = json.loads(beside.read_text(encoding="utf-8"))
            config = ProbeFileConfig.model_validate(metadata)
        except ValidationError as error:
            what = "; ".join(".".join(map(str, one["loc"])) + " " + one["msg"] for one in error.errors())
            raise RouterError(f"--probe {path} cannot be used: {what}.") from error
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise RouterError(f"--probe {path} cannot be read as safetensors with JSON: {error}.") from error
        sizes = _sizes(path, shapes)
        if not config.outputs and sizes[-1] == 1:
            config = ProbeFileConfig.model_validate(config.model_dump() | {"outputs": (re.sub(r"[^\w.-]", "_", path.stem),)})
        if len(config.outputs) != sizes[-1]:
            raise RouterError(f"--probe {path} has {sizes[-1]} outputs, and names for {len(config.outputs)}: see `outputs`.")
        return cls(path, config, sizes)

    def check(self, hidden_size: int, *, has_latents: bool) -> None:
        """Raises `RouterError` where it does not fit a base, or reads latents that nobody computes."""
        features = self.config.features
        if "latents" in features and not has_latents:
            raise RouterError(f"--probe {self.path} reads latents, and there is no bundle with a network: see --bundle.")
        if self.sizes[0] != hidden_size * len(features):
            raise RouterError(
                f"--probe {self.path} takes {self.sizes[0]} values, and {', '.join(features)} of this base have "
                f"{hidden_size * len(features)}: it was made for another base, or for other features."
            )


def read_probes(paths: Sequence[Path]) -> tuple[ProbeFile, ...]:
    """Raises `RouterError` for one that cannot be used, and for two outputs of one name."""
    files = tuple(map(ProbeFile.read, paths))
    names = output_names(files)
    if twice := [name for name in names if names.count(name) > 1]:
        raise RouterError(f"Two outputs of --probe are called {twice[0]!r}. Give them other names in `outputs`.")
    return files


def output_names(files: Sequence[ProbeFile]) -> tuple[str, ...]:
    """Of all of them, in order."""
    return tuple(name for file in files for name in file.config.outputs)


def average(files: Iterable[ProbeFile]) -> bool:
    """Whether some of them read the mean over all positions of a prompt."""
    return any("mean" in file.config.features for file in files)


def _sizes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Of the layers, from the shapes (out, in) of their weights and (out,) of their biases."""
    layers = next((layers for layers in (_LINEAR, _MLP) if {*shapes} == {name for layer in layers for name in layer}), None)
    if layers is not None:
        weights = [shapes[weight] for weight, _ in layers]
        is_chain = all(
            len(weight) == 2 and shapes[bias] == weight[:1] for weight, (_, bias) in zip(weights, layers, strict=True)
        )
        if is_chain and all(first[0] == second[1] for first, second in pairwise(weights)):
            return (weights[0][1], *(weight[0] for weight in weights))
    raise RouterError(
        f"--probe {path} holds {', '.join(sorted(shapes)) or 'nothing'}: it has to be the state_dict of a torch.nn.Linear, "
        "or of a torch.nn.Sequential of Linear, ReLU and Linear."
    )
