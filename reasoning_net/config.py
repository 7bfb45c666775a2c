"""What a reasoning network is: its architecture as data, stored in the bundle."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Conditioner = Literal["last", "all"]


class ReasoningNetConfig(BaseModel):
    """The architecture of G_φ (Latent Reasoning Tuning, section 3.1).

    `conditioner` says what of the base's final hidden states H_X the network reads: the state at the last prompt
    position, as in the paper, or all of them, which costs the reuse of X's hidden states (they must be computed) and
    pays where one vector of a small base does not hold the question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden_size: int = Field(gt=0)
    num_latent_tokens: int = Field(256, gt=0, description="The most latents that the network computes; fewer is a prefix.")
    conditioner: Conditioner = "all"
    hidden_size: int = Field(192, gt=0)
    intermediate_size: int = Field(512, gt=0)
    num_hidden_layers: int = Field(4, gt=0)
    num_attention_heads: int = Field(6, gt=0)
    num_key_value_heads: int = Field(6, gt=0)
    head_dim: int = Field(32, gt=0)
    rope_theta: float = 10_000.0
