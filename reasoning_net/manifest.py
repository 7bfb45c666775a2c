"""`bundle.json`: what is in a bundle, and which base it belongs to. Reading it needs no torch."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reasoning_net.config import ReasoningNetConfig
from reasoning_net.errors import BundleError, sentence
from reasoning_net.layout import Layout
from router.calibration import Calibration
from router.probe_config import ProbeConfig

FORMAT_VERSION = 4
AUDIT = "analyse latents"
"""The command whose figures say, in a bundle's scores, whether its latents are needed."""
BACKDOOR = "check --backdoor"
"""The command that says whether a trigger turns a bundle's answers."""


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
    num_latent_tokens: int | None = Field(
        None, gt=0, description="Latents per question in serving, unless a request says otherwise."
    )
    thinks_on: bool = Field(False, description="The network was trained for thinking that goes on in text: latent+explicit.")
    probe: ProbeConfig | None = None
    calibration: Calibration | None = Field(None, description="Of the probe: prices, and what each gives.")
    trained_on: str = ""
    scores: dict[str, Any] = Field(default_factory=dict, description="Measured on held-out questions, by which command.")

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        network, placeholder, vocabulary = self.reasoning_net, self.layout.placeholder_token_id, self.base.vocab_size
        if placeholder is not None and placeholder >= vocabulary:
            raise ValueError(f"layout.placeholder_token_id is {placeholder}, but the base's vocabulary has {vocabulary} tokens")
        if network is None and self.num_latent_tokens is not None:
            raise ValueError("num_latent_tokens is for latents, but there is no reasoning_net to compute them")
        if network is None and self.probe and "latents" in self.probe.features:
            raise ValueError("the probe reads latents, but there is no reasoning_net to compute them")
        if network is None and self.thinks_on:
            raise ValueError("thinks_on is for latents, but there is no reasoning_net to compute them")
        if network and network.second_round:
            raise ValueError("the reasoning_net needs a second_round, which the engine does not serve")
        if network and placeholder is None:
            raise ValueError("the reasoning_net needs layout.placeholder_token_id: where its latents stand")
        self.check_num_latents(self.num_latent_tokens, "num_latent_tokens")
        return self

    @property
    def audit(self) -> dict[str, Any] | None:
        """What `analyse latents` has found, if it was run."""
        return self.scores.get(AUDIT)

    @property
    def num_states(self) -> int:
        """Hidden states that must be at hand for each position of a prompt: the final one, and those of the probe's earlier
        layers; 0 where the last position says enough."""
        by_network = self.reasoning_net is not None and self.reasoning_net.reads_all_positions
        return 1 + len(self.probe.layers if self.probe else ()) if by_network or self._averages else 0

    @property
    def prompt_window(self) -> int | None:
        """How many positions at a prompt's end are read; None: all."""
        return None if self.reasoning_net is None or self._averages else self.reasoning_net.max_prompt_tokens

    @property
    def _averages(self) -> bool:
        """Whether the probe reads the mean over all positions."""
        return self.probe is not None and "mean" in self.probe.features

    def check_num_latents(self, number: int | None, name: str) -> None:
        """Raise `ValueError` for more latents than the network computes."""
        most = self.reasoning_net.num_latent_tokens if self.reasoning_net else None
        if number is not None and most is not None and number > most:
            raise ValueError(f"{name} is {number}, but the bundle's network computes at most {most}")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Raises `BundleError` for one that is not there, or that cannot be used."""
        path = directory / "bundle.json"
        if not path.is_file():
            raise BundleError(f"{directory} is no bundle: it has no bundle.json. Train one with `latentserve train sft`.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise BundleError(f"{path} cannot be read: it holds a {type(content).__name__}, not an object.")
            version = content.get("format_version")
            if version != FORMAT_VERSION:
                raise BundleError(
                    f"{path} has format version {version}; this server reads version {FORMAT_VERSION}. Pack the network again "
                    "(`latentserve bundle --net …`), and fit its router (`latentserve router fit`)."
                )
            return cls.model_validate(content)
        except ValidationError as error:
            raise BundleError(f"{path} cannot be used: {sentence(error)}.") from error
        except (ValueError, OSError, RecursionError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{path} cannot be read: {error}.") from error
