"""A bundle: everything that turns a base model into a hybrid one, as a directory.

    bundle.json                   what is in it, and which base it belongs to
    reasoning_net.safetensors     optional: without it there is no latent mode
    probe.safetensors             optional: without it first-token entropy routes `auto`
    calibration.safetensors       with a probe: what held-out questions' answers were like, for `router calibrate`
    parity.safetensors            a prompt with the hidden states and latents that training saw, for the check at start
    signature.json, README.md     of one that was pushed: what it must be, and what it is for (`reasoning_net.gallery`)

Safetensors and JSON only, never pickle. Unknown fields are refused; a bundle of another base is refused.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from reasoning_net import gallery
from reasoning_net.demo import DEMO_BUNDLE, DEMO_MODEL
from reasoning_net.errors import BundleError
from reasoning_net.manifest import BaseFingerprint, Manifest
from reasoning_net.model import ReasoningNet
from router.probe import Probe

__all__ = ["Bundle", "BundleError", "Manifest", "bundle_of", "checkpoint_directory", "fingerprint"]
M = TypeVar("M", bound=torch.nn.Module)


class Bundle:
    """A bundle on disk. Networks are loaded only when asked for."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest

    @classmethod
    def load(cls, directory: str | Path) -> "Bundle":
        """Read and validate the manifest, and the headers of all tensors; raises `BundleError`.

        `directory`: or owner/name[@revision] on the hub.
        """
        directory = gallery.local(directory)
        bundle = cls(directory, Manifest.read(directory))
        shapes = {path.stem: _shapes(path) for path in directory.glob("*.safetensors")}
        for name, network in bundle._architectures().items():
            path = directory / f"{name}.safetensors"
            if name not in shapes:
                raise BundleError(f"bundle.json names a {name}, but {path} is missing.")
            _check_fit(path, shapes[name], {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()})
        return bundle

    def _architectures(self) -> dict[str, torch.nn.Module]:
        """The networks of the manifest by name, without memory for their weights."""
        config = self.manifest
        networks: dict[str, torch.nn.Module] = {}
        try:
            with torch.device("meta"):
                if config.reasoning_net:
                    networks["reasoning_net"] = ReasoningNet(config.reasoning_net)
                if config.probe:
                    networks["probe"] = Probe(config.probe)
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"{self.directory / 'bundle.json'} describes a network that cannot be: {error}") from error
        return networks

    def save(self, parts: dict[str, torch.nn.Module | dict[str, Tensor]]) -> None:
        """Write the manifest and the given parts (`reasoning_net`, `probe`, `parity`); networks in bf16.

        A signature goes: what is written now is not what was signed.
        """
        self.check_writable()
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / gallery.SIGNATURE).unlink(missing_ok=True)
        for name, part in parts.items():
            tensors = part if isinstance(part, dict) else {k: v.bfloat16() for k, v in part.state_dict().items()}
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, self.directory / f"{name}.safetensors")
        (self.directory / "bundle.json").write_text(self.manifest.model_dump_json(indent=2) + "\n")

    def check_writable(self) -> None:
        """Raise `BundleError` for one of the hub's cache, whose files several revisions share."""
        if gallery.in_hub_cache(self.directory):
            raise BundleError(
                f"{self.directory} belongs to the hub's cache and stays as it is. Copy the bundle to a directory of your own "
                "(`latentserve bundle pull owner/name DIR`), and name that."
            )

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
        module.load_state_dict({k: v.float() for k, v in load_file(path).items()})
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
        return gallery.fingerprint_of(self.directory)

    def check_base(self, model: str) -> None:
        """Raise `BundleError` naming every field in which `model` is not the base of this bundle."""
        ours, theirs = self.manifest.base.model_dump(), fingerprint(model).model_dump()
        different = [f"{name}: bundle {ours[name]}, model {theirs[name]}" for name in ours if ours[name] != theirs[name]]
        if different:
            raise BundleError(
                f"The bundle {self.directory} was not trained for {model} ({'; '.join(different)}). "
                "Serve the base it was trained for, or train a bundle for this model."
            )
        for name, part in (("reasoning_net", self.manifest.reasoning_net), ("probe", self.manifest.probe)):
            if part and part.base_hidden_size != ours["hidden_size"]:
                raise BundleError(
                    f"The {name} of {self.directory} reads states of size {part.base_hidden_size}, and its base has "
                    f"{ours['hidden_size']}."
                )


def bundle_of(model: str, directory: Path | None) -> Bundle | None:
    """The bundle in a directory (or on the hub); without one the demo's for the demo's base, and none for another base.

    Raises `BundleError` for a bundle of another base.
    """
    if directory is None and Path(model).resolve() == DEMO_MODEL:
        directory = DEMO_BUNDLE
    if directory is None:
        return None
    bundle = Bundle.load(directory)
    bundle.check_base(model)
    return bundle


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a file, from its header; raises `BundleError` for a file that is cut off, or is something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error


def _check_fit(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise `BundleError` unless names and shapes of the tensors in a file are those of the network."""
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if different:
        name = different[0]
        raise BundleError(
            f"{path} does not fit the architecture in bundle.json: {len(different)} tensors differ, such as {name}, which is "
            f"{found.get(name, 'missing')} and should be {wanted.get(name, 'missing')}."
        )


def checkpoint_directory(model: str) -> Path:
    """Where a checkpoint lies: the directory itself, or that of a Hugging Face id in the local cache.

    Raises `BundleError` where it is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise BundleError(
            f"{model} is neither a directory nor in the hub's local cache, so no bundle can be compared with it. "
            f"Fetch it first: `hf download {model}`."
        ) from error


def fingerprint(model: str) -> BaseFingerprint:
    """The fingerprint of a checkpoint: a directory, or a Hugging Face id that is in the local cache."""
    directory = checkpoint_directory(model)
    config = json.loads((directory / "config.json").read_text())
    config = config.get("text_config", {}) | config  # of a base that reads images, too
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
