"""What a probe is: its architecture as data, stored in the bundle. Apart from the probe, for those who do not load it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from router.policy import Scores

Feature = Literal["last", "mean", "latents"]
_RUNG = "latent@"
CLASSES = ("normal", "hard", "easy")
"""DiffAdapt's, in the order in which its labels are tested."""
Output = Literal["direct", "latent", "explicit", "tokens"]
"""P(correct) in a mode, or the expected number of tokens of explicit thinking, answer included."""


class ProbeConfig(BaseModel):
    """`last`: the state at the last prompt position; `mean`: over all positions; `latents`: over the first 16 latents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden_size: int = Field(gt=0)
    hidden_size: int = Field(128, ge=0, description="Of the MLP; 0: linear heads.")
    features: tuple[Feature, ...] = ("last", "mean")
    layers: tuple[int, ...] = Field(
        (), description="Layers after which `last` and `mean` are taken, too; learned weights mix them with the final states."
    )
    targets: tuple[Output, ...] = ("direct", "latent", "explicit", "tokens")
    ladder: tuple[PositiveInt, ...] = Field(
        (), max_length=12, description="Numbers of latents below the bundle's; for each one more output, P(correct | so many)."
    )
    classes: bool = Field(False, description="A head of its own on the last final state says DiffAdapt's class.")

    @model_validator(mode="after")
    def _can_classify(self) -> "ProbeConfig":
        if self.classes and ("last" not in self.features or not self.hidden_size):
            raise ValueError("classes need the feature last, and a hidden_size")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.targets, *(rung(number) for number in self.ladder))

    @property
    def last_state(self) -> slice:
        """Where the final state at the last position stands in the features."""
        before = sum(self.sizes()[: self.features.index("last")])
        return slice(before, before + self.base_hidden_size)

    def sizes(self) -> list[int]:
        """Of what each feature brings to the input: the states of all layers, side by side."""
        per_state = self.base_hidden_size * (1 + len(self.layers))
        return [self.base_hidden_size if name == "latents" else per_state for name in self.features]


def rung(num_latents: int) -> str:
    """The name of the output that is P(correct | so many latents)."""
    return f"{_RUNG}{num_latents}"


def scores_of(outputs: Mapping[str, Sequence[float]]) -> list[Scores]:
    """The probe's outputs by name, one value a question, as scores a question."""
    targets = {name: values for name, values in outputs.items() if not name.startswith(_RUNG)}
    ladder = sorted((int(name.removeprefix(_RUNG)), values) for name, values in outputs.items() if name.startswith(_RUNG))
    return [
        Scores(
            **{name: values[row] for name, values in targets.items()},
            by_latents=tuple((number, values[row]) for number, values in ladder),
            probes={},
        )
        for row in range(len(next(iter(outputs.values()))))
    ]
