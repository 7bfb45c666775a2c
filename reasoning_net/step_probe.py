"""Which steps of a chain its answer needs, read off the base's activations where it wrote them.

After "Reasoning models know what's important, and encode it in their activations" (2604.18307): the mean over a step's tokens,
all layers side by side, and an MLP of two layers. `analyse importance` trains it; what it says of a step needs no look at what
comes after it, so a server could ask it while a chain is written.

Shapes: n steps, P tokens of a chain, L layers, d hidden size, F = L · d.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reasoning_net.boundaries import Boundaries
from reasoning_net.bundle import fingerprint
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.manifest import BaseFingerprint

_METADATA = "config"


class StepProbeConfig(BaseModel):
    """What a stored probe is of; in the header of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseFingerprint
    sentences: bool
    """Whether its steps are sentences, or lines."""
    hidden_size: PositiveInt = 128

    @property
    def features(self) -> int:
        return self.base.num_hidden_layers * self.base.hidden_size


class StepMlp(nn.Module):
    """Logits (n,) from features (n, F), which are standardised first."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.layers = nn.Sequential(nn.Linear(features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers((features - self.mean) / self.std).squeeze(-1)


class StepReader:
    """Splits chains into steps, and reads them after their questions."""

    def __init__(self, base: FrozenBase, layout: LayoutIds, *, sentences: bool) -> None:
        self.base, self.layout = base, layout
        self._boundaries, self._sentences = Boundaries(base.tokenizer), sentences

    def steps(self, reasoning: str) -> tuple[str, ...]:
        """Joined they are the chain."""
        pieces = self._boundaries.pieces(self.encode(reasoning.strip()), sentences=self._sentences)
        return tuple(str(self.base.tokenizer.decode(list(piece))) for piece in pieces)

    def encode(self, text: str) -> list[int]:
        return list(self.base.tokenizer.encode(text, add_special_tokens=False))

    def spans(self, steps: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """The chain's tokens, and from where to where each step goes. Steps are tokenised one by one, so that another base's
        steps can be read, too."""
        ids, spans = list[int](), list[tuple[int, int]]()
        for step in steps:
            start = len(ids)
            ids += self.encode(step)
            spans.append((start, len(ids)))
        return ids, spans

    @torch.no_grad()
    def states(self, prompt: Sequence[int], steps: Sequence[str]) -> Tensor:
        """The mean over each step's tokens after X, all layers side by side, (n, F)."""
        ids, spans = self.spans(steps)
        opened = [*prompt, *self.layout.before_latents]
        layers = range(1, self.base.num_layers)
        states = self.base.read([[*opened, *ids]], layers).all_states[0, :, len(opened) :]  # (L, P, d)
        return torch.stack([states[:, start:end].mean(1).flatten() for start, end in spans]).float().cpu()


class StepProbe:
    """A stored probe: how likely each step of a chain is to be important."""

    def __init__(self, config: StepProbeConfig, mlp: StepMlp) -> None:
        self.config, self._mlp = config, mlp.eval()

    @classmethod
    def load(cls, path: Path) -> "StepProbe":
        """Raises `StageError` for a file that is no probe of steps."""
        try:
            with safe_open(path, framework="pt") as file:
                config = StepProbeConfig.model_validate_json((file.metadata() or {}).get(_METADATA, ""))
            mlp = StepMlp(config.features, config.hidden_size)
            mlp.load_state_dict(load_file(path))
        except (OSError, SafetensorError, ValidationError, RuntimeError) as error:
            raise StageError(f"{path} is no probe of steps: `latentserve analyse importance` writes one.") from error
        return cls(config, mlp)

    def save(self, path: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self._mlp.state_dict().items()}
        save_file(tensors, path, {_METADATA: self.config.model_dump_json()})

    def check_base(self, model: str) -> None:
        """Raise `StageError` for another base than that whose activations it was trained on."""
        if fingerprint(model) != self.config.base:
            raise StageError(f"The probe of steps was not trained on {model}. Train one: latentserve analyse importance.")

    @torch.no_grad()
    def scores(self, states: Tensor) -> list[float]:
        """P(important) of steps with these states, (n, F)."""
        return list(self._mlp(states).sigmoid().tolist())

    def compressed(self, reader: StepReader, prompt: Sequence[int], reasoning: str, keep: float) -> str:
        """The chain's most important steps, in their order."""
        steps = reader.steps(reasoning)
        if not steps:
            return ""
        return joined(steps, most_important(self.scores(reader.states(prompt, steps)), keep))


def most_important(scores: Sequence[float], keep: float) -> list[int]:
    """The steps of the highest scores, as many as that share of all makes, and one at least, in their order."""
    number = max(1, math.floor(keep * len(scores) + 0.5))
    return sorted(sorted(range(len(scores)), key=lambda at: -scores[at])[:number])


def joined(steps: Sequence[str], kept: Sequence[int]) -> str:
    return "".join(steps[at] for at in kept).strip()
