"""Thinking in mixtures of tokens: what a request may choose.

Soft Thinking (2505.15778) feeds back the mean of the likeliest tokens' embeddings instead of one token's; noise on the mixture
(2508.03440) keeps it from following its largest part; LEAD (2603.13366) goes between mixtures and text by entropy. Where these
papers' settings and their code differ we say which we took.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_PARTS = 20
Noise = Literal["none", "gumbel", "dirichlet"]


class SoftThinking(BaseModel):
    """The mixture is of the `k` likeliest tokens after temperature, top-p and min-p; what is written is its largest part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(10, ge=1, le=MAX_PARTS, description="Tokens of a mixture; 1 is greedy decoding.")
    temperature: float = Field(0.6, gt=0, le=2, description="Of the mixture; the answer has the request's own.")
    top_p: float = Field(0.95, gt=0, le=1)
    min_p: float = Field(0.001, ge=0, le=1, description="Least probability, as a share of the largest.")
    noise: Noise = Field("none", description="Of the request's seed.")
    noise_scale: float = Field(
        0.5, gt=0, le=100, description="gumbel: temperature of the softmax (0.5); dirichlet: concentration (4, 1)."
    )
    switch: Literal["lead"] | None = Field(None, description="lead: text where the entropy falls, mixtures where it rises.")
    window: int = Field(128, ge=1, description="lead: tokens in text before the next mixture.")
    max_returns: int = Field(5, ge=1, description="lead: returns to text; at the next one thinking ends.")
    anchor: float = Field(0.4, ge=0, lt=1, description="lead: share of the opening tag in a segment's first mixture.")
    closing: float = Field(
        0.3, ge=0, lt=1, description="lead: share of the closing tag in the first token back in text (1 − β₀)."
    )
    cold_entropy: float = Field(0.01, ge=0, description="Nats below which a step is cold.")
    cold_steps: int | None = Field(
        None, ge=1, description="Cold steps in a row that end thinking (the paper: 256); none by default: chains that are "
        "sure throughout are no sign of being at an end."
    )  # fmt: skip

    @model_validator(mode="after")
    def _text_has_no_noise(self) -> Self:
        if self.switch and self.noise != "none":
            raise ValueError("noise is for mixtures throughout, not for switch")
        return self

    @property
    def ends_thinking(self) -> bool:
        """Whether the end of thinking may be written for the model."""
        return self.switch is not None or self.cold_steps is not None
