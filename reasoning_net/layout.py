"""The prompt layouts: what stands after the question X in each mode. Data in the bundle, read by training and serving.

direct    [X ; direct]                          the model is told that thinking is over
latent    [X ; before_latents ; z ; after_latents]
explicit  [X ; explicit]                        usually nothing: the model opens its own think tag
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase


class Layout(BaseModel):
    """The layouts as text, and the reserved token that stands where a latent is overlaid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    direct: str = "<think>\n\n</think>\n\n"
    explicit: str = ""
    before_latents: str = "<think>\n"
    after_latents: str = "\n</think>\n\n"
    placeholder_token_id: int | None = Field(None, ge=0, description="Never part of a client's prompt, never sampled.")

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> "LayoutIds":
        """The layouts as token ids: each piece is tokenised on its own, so that X never depends on what follows."""
        direct, explicit, before, after = (
            tuple(tokenizer.encode(text, add_special_tokens=False))
            for text in (self.direct, self.explicit, self.before_latents, self.after_latents)
        )
        return LayoutIds(direct, explicit, before, after, self.placeholder_token_id)


@dataclass(frozen=True, slots=True)
class LayoutIds:
    """What to append to X, as token ids."""

    direct: tuple[int, ...]
    explicit: tuple[int, ...]
    before_latents: tuple[int, ...]
    after_latents: tuple[int, ...]
    placeholder: int | None

    def latent(self, num_latents: int) -> tuple[int, ...]:
        """The latent layout, with placeholders where the engine overlays z."""
        assert self.placeholder is not None, "a layout for latents reserves a token"
        return (*self.before_latents, *(self.placeholder,) * num_latents, *self.after_latents)
