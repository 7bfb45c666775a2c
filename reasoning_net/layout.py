"""The prompt layouts: what stands after the question X in each mode. Data in the bundle, read by training and serving.

direct    [X ; direct]                          the model is told that thinking is over
latent    [X ; before_latents ; z ; after_latents]
latent+explicit  [X ; before_latents ; z]       the model thinks on in text, and closes its thinking itself
explicit  [X ; explicit]                        usually nothing: the model opens its own think tag
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from reasoning_net.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LATENT_TOKEN = "<|latent|>"  # what a base that is made for latents reserves for them  # noqa: S105


class Layout(BaseModel):
    """The layouts as text, and the reserved token that stands where a latent is overlaid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    direct: str = "<think>\n\n</think>\n\n"
    explicit: str = ""
    before_latents: str = "<think>\n"
    after_latents: str = "\n</think>\n\n"
    placeholder_token_id: int | None = Field(None, ge=0, description="Never part of a client's prompt, never sampled.")

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> "LayoutIds":
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
        return (*self.opened(num_latents), *self.after_latents)

    def opened(self, num_latents: int) -> tuple[int, ...]:
        """Latents after which the model thinks on."""
        assert self.placeholder is not None, "a layout for latents reserves a token"
        return (*self.before_latents, *(self.placeholder,) * num_latents)


def check_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `StageError` for a base that cannot render a conversation."""
    if not tokenizer.chat_template:
        raise StageError("The base has no chat template, so there is no way to render a question. Use an instruct model.")


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> list[int]:
    """X: the conversation through the chat template, up to where the model has to write."""
    check_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(str(text), add_special_tokens=False)


def default_layout(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> Layout:
    """The layout of a base with Qwen3's think tags, whether or not its chat template opens the first one.

    The placeholder is the base's own reserved token, else an id that has an embedding and no token, else a token that the
    tokenizer reserves. Raises `StageError` for a base without a chat template, think tags or a free id.
    """
    check_chat_template(tokenizer)
    vocabulary = tokenizer.get_vocab()
    if "</think>" not in vocabulary:
        raise StageError(
            "The base's tokenizer has no </think> token, so it is no reasoning model of Qwen3's or R1's kind. "
            "Write its layout as JSON (direct, explicit, before_latents, after_latents, placeholder_token_id): --layout FILE."
        )
    unused = next((i for i in range(max(vocabulary.values()) + 1, vocab_size)), None)
    reserved = next((i for token, i in sorted(vocabulary.items()) if "reserved" in token), None)
    placeholder = vocabulary.get(LATENT_TOKEN, unused if unused is not None else reserved)
    if placeholder is None:
        raise StageError("The base has no unused token id for latents. Name one that is never used: --layout FILE.")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False)
    if str(rendered).rstrip().endswith("<think>"):
        return Layout(direct="\n</think>\n\n", before_latents="", placeholder_token_id=placeholder)
    return Layout(placeholder_token_id=placeholder)
