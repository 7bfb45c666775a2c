"""What a reasoning network is: its architecture as data, stored in the bundle."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Conditioner = Literal["last", "all", "all+embeddings"]
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
"""Of a Qwen3, as transformers' configuration and ours both call them."""


class ReasoningNetConfig(BaseModel):
    """The architecture of G_φ (Latent Reasoning Tuning, section 3.1).

    `conditioner` says what of the base's hidden states the network reads: the final state at the last prompt position, as
    in the paper (`last`); the final states of all positions (`all`), which pays where one vector of a small base does not hold
    the question; or of all positions the final states and the first ones, which are the token embeddings (`all+embeddings`):
    final states are about the next token, and a small base forgets in them what the current one was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden_size: int = Field(gt=0)
    num_latent_tokens: int = Field(256, gt=0, description="The most latents that the network computes; fewer is a prefix.")
    num_rounds: int = Field(1, gt=0, description="The most rounds that the network thinks in; fewer is an earlier stop.")
    second_round: bool = Field(False, description="It thinks again with what the base made of its latents; not served yet.")
    conditioner: Conditioner = "all"
    max_prompt_tokens: int | None = Field(
        None, gt=0, description="Of a longer prompt the network reads as many positions at its end; None: all."
    )
    hidden_size: int = Field(192, gt=0)
    intermediate_size: int = Field(512, gt=0)
    num_hidden_layers: int = Field(4, gt=0)
    num_attention_heads: int = Field(6, gt=0)
    num_key_value_heads: int = Field(6, gt=0)
    head_dim: int = Field(32, gt=0)
    rope_theta: float = 10_000.0

    @property
    def reads_all_positions(self) -> bool:
        return self.conditioner != "last"

    @property
    def reads_embeddings(self) -> bool:
        return self.conditioner == "all+embeddings"
