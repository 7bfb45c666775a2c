"""A bundle: everything that turns a base model into a hybrid one, as a directory.

    bundle.json                   what is in it, and which base it belongs to
    reasoning_net.safetensors     optional: without it there is no latent mode
    probe.safetensors             optional: without it first-token entropy routes `auto`
    calibration.safetensors       with a probe: what held-out questions' answers were like, for `router calibrate`
    parity.safetensors            a prompt with the hidden states and latents that training saw, for the check at start

Safetensors and JSON only, never pickle. Unknown fields are refused; a bundle of another base is refused.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from reasoning_net.config import ReasoningNetConfig
from reasoning_net.layout import Layout
from reasoning_net.model import ReasoningNet
from router.calibration import Calibration
from router.probe import Probe, ProbeConfig

FORMAT_VERSION = 3
M = TypeVar("M", bound=torch.nn.Module)


class BundleError(ValueError):
    """A bundle that cannot be used, with what differs and what to do."""


class BaseFingerprint(BaseModel):
    """Which base model a bundle belongs to. The hashes cover a sample of the weights and the tokenizer file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    weights: str
    tokenizer: str


class Manifest(BaseModel):
    """`bundle.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    base: BaseFingerprint
    layout: Layout
    reasoning_parser: str = Field("qwen3", description="vLLM's reasoning parser for the base.")
    reasoning_net: ReasoningNetConfig | None = None
    num_latent_tokens: int | None = Field(None, description="Latents per question in serving, unless a request says otherwise.")
    probe: ProbeConfig | None = None
    calibration: Calibration | None = Field(None, description="Of the probe: prices, and what each gives.")
    trained_on: str = ""
    scores: dict[str, Any] = Field(default_factory=dict, description="Measured on held-out questions, by which command.")


class Bundle:
    """A bundle on disk. Networks are loaded only when asked for."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest

    @classmethod
    def load(cls, directory: str | Path) -> "Bundle":
        """Read and validate the manifest; raises `BundleError`."""
        directory = Path(directory)
        path = directory / "bundle.json"
        if not path.is_file():
            raise BundleError(f"{directory} is no bundle: it has no bundle.json. Train one with `latentserve train sft`.")
        try:
            content = json.loads(path.read_text())
            version = content.get("format_version")
            if version != FORMAT_VERSION:
                raise BundleError(f"{path} has format version {version}; this server reads version {FORMAT_VERSION}.")
            manifest = Manifest.model_validate(content)
        except (json.JSONDecodeError, ValidationError, AttributeError) as error:
            raise BundleError(f"{path} cannot be read: {error}") from error
        bundle = cls(directory, manifest)
        wanted = {"reasoning_net": manifest.reasoning_net, "probe": manifest.probe}
        for name, config in wanted.items():
            if config is not None and not (directory / f"{name}.safetensors").is_file():
                raise BundleError(f"{path} names a {name}, but {directory / name}.safetensors is missing.")
        if manifest.probe and "latents" in manifest.probe.features and not manifest.reasoning_net:
            raise BundleError(f"{path}: the probe reads latents, but the bundle has no reasoning_net.")
        return bundle

    def save(self, parts: dict[str, torch.nn.Module | dict[str, Tensor]]) -> None:
        """Write the manifest and the given parts (`reasoning_net`, `probe`, `parity`); networks in bf16."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            tensors = part if isinstance(part, dict) else {k: v.bfloat16() for k, v in part.state_dict().items()}
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, self.directory / f"{name}.safetensors")
        (self.directory / "bundle.json").write_text(self.manifest.model_dump_json(indent=2) + "\n")

    def update(self, parts: dict[str, torch.nn.Module | dict[str, Tensor]] | None = None, **fields: Any) -> "Bundle":
        """The bundle with other fields of its manifest, and other parts, written to disk."""
        updated = Bundle(self.directory, self.manifest.model_copy(update=fields))
        updated.save(parts or {})
        return updated

    def reasoning_net(self) -> ReasoningNet | None:
        """The network in float32, or None."""
        if self.manifest.reasoning_net is None:
            return None
        return self._load(ReasoningNet(self.manifest.reasoning_net), "reasoning_net")

    def probe(self) -> Probe | None:
        """The probe in float32, or None."""
        return self._load(Probe(self.manifest.probe), "probe") if self.manifest.probe else None

    def _load(self, module: M, name: str) -> M:
        path = self.directory / f"{name}.safetensors"
        try:
            module.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        except RuntimeError as error:
            raise BundleError(f"{path} does not fit the architecture in bundle.json: {error}") from error
        return module.eval()

    def parity(self) -> dict[str, Tensor] | None:
        """`prompt_token_ids` (T,), `hidden_state` (d,) of its last position and, with a network, `latents` (N, d); or None."""
        path = self.directory / "parity.safetensors"
        return load_file(path) if path.is_file() else None

    def calibration_outcomes(self) -> dict[str, Tensor] | None:
        """Columns (n,) of what `router fit` saw on held-out questions (`router.outcomes`), or None."""
        path = self.directory / "calibration.safetensors"
        return load_file(path) if path.is_file() else None

    def fingerprint(self) -> str:
        """A short hash of the whole bundle: what else, beside X, the latents are a function of."""
        digest = hashlib.sha256()
        for path in sorted(self.directory.glob("*.safetensors")):
            digest.update(path.read_bytes())
        digest.update((self.directory / "bundle.json").read_bytes())
        return digest.hexdigest()[:16]

    def check_base(self, model: str) -> None:
        """Raise `BundleError` naming every field in which `model` is not the base of this bundle."""
        ours, theirs = self.manifest.base.model_dump(), fingerprint(model).model_dump()
        different = [f"{name}: bundle {ours[name]}, model {theirs[name]}" for name in ours if ours[name] != theirs[name]]
        if different:
            raise BundleError(
                f"The bundle {self.directory} was not trained for {model} ({'; '.join(different)}). "
                "Serve the base it was trained for, or train a bundle for this model."
            )


def checkpoint_directory(model: str) -> Path:
    """Where a checkpoint lies: the directory itself, or that of a Hugging Face id in the local cache."""
    return Path(model) if Path(model).is_dir() else Path(snapshot_download(model, local_files_only=True))


def fingerprint(model: str) -> BaseFingerprint:
    """The fingerprint of a checkpoint: a directory, or a Hugging Face id that is in the local cache."""
    directory = checkpoint_directory(model)
    config = json.loads((directory / "config.json").read_text())
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            names = sorted(weights.keys())
            sampled = {names[0], names[-1], *(n for n in names if n.endswith(("embed_tokens.weight", "model.norm.weight")))}
            for name in sorted(sampled):
                rows = weights.get_slice(name)[:16]
                digest.update(rows.float().numpy().tobytes())
    tokenizer = directory / "tokenizer.json"
    return BaseFingerprint(
        model_type=config["model_type"],
        hidden_size=config["hidden_size"],
        num_hidden_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        weights=digest.hexdigest()[:16],
        tokenizer=hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16] if tokenizer.is_file() else "none",
    )
