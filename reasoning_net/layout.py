"""The prompt layouts: what stands after the question X in each mode. Data in the bundle, read by training and serving.

direct    [X ; direct]                          the model is told that thinking is over
latent    [X ; before_latents ; z ; after_latents]
latent+explicit  [X ; before_latents ; z]       the model thinks on in text, and closes its thinking itself
explicit  [X ; explicit]                        usually nothing: the model opens its own think tag

A base without think tags answers at once, and so has no layout of its own for `explicit`: a thinking prompt is one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reasoning_net.errors import StageError, sentence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LATENT_TOKEN = "<|latent|>"  # what a base that is made for latents reserves for them  # noqa: S105
THINK_TAGS = ("<think>", "</think>")
END_OF_THINKING = THINK_TAGS[1]
NO_THINKING = (
    "This base has no think tags: it answers at once. What its chains in text start with is yours to say: serve, adapt, bundle "
    'and train traces take --thinking-prompt "Let\'s think step by step."'
)
_RESERVED = re.compile(
    r"<\|?(\w+_)?(reserved|unused|placeholder)(_\w+|\d+)?\|?>|\[(unused|control)_?\d+\]|<SPECIAL_\d+>", re.IGNORECASE
)
_OF_REPOSITORIES = re.compile(r"<\|?(gh_stars|repo_?name|file_?(sep|name)|empty_output|jupyter_\w+|issue_\w+|commit_\w+)\|?>")
"""Of pre-training on code: no conversation has them."""
_ANCHOR = "a"  # a letter merges with no tag, and no line


class Layout(BaseModel):
    """The layouts as text, and the reserved token that stands where a latent is overlaid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    direct: str = "<think>\n\n</think>\n\n"
    explicit: str = ""
    before_latents: str = "<think>\n"
    after_latents: str = "\n</think>\n\n"
    think_tags: tuple[str, str] | None = Field(
        THINK_TAGS, description="Around a chain in text; None: the base writes none, and a chain and its answer are one text."
    )
    placeholder_token_id: int | None = Field(None, ge=0, description="Never part of a client's prompt, never sampled.")

    @property
    def thinks_in_text(self) -> bool:
        """Whether mode explicit is another one than direct."""
        return self.think_tags is not None or bool(self.explicit)

    def prompted(self, thinking_prompt: str | None) -> "Layout":
        """With what a chain in text starts with, where that is given."""
        return self if thinking_prompt is None else self.model_copy(update={"explicit": thinking_prompt})

    def check_explicit(self) -> None:
        """Raise `StageError` where nothing makes the base think in text."""
        if not self.thinks_in_text:
            raise StageError(NO_THINKING)

    def check_latents(self) -> None:
        """Raise `StageError` where latents have no place: before hours of training, not after them."""
        if self.placeholder_token_id is None:
            raise StageError(
                "The layout reserves no token for latents, and the base has none that is never used. Add one to the base "
                f"(transformers: `tokenizer.add_tokens('{LATENT_TOKEN}', special_tokens=True)`, "
                "`model.resize_token_embeddings(len(tokenizer))`, save both), or name a token that no conversation has as "
                "placeholder_token_id in --layout FILE."
            )

    @classmethod
    def read(cls, file: Path) -> "Layout":
        """Raises `StageError` for a file that is none."""
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise StageError(f"{file} is no layout: {sentence(error)}. It has {', '.join(cls.model_fields)}.") from error
        except (OSError, ValueError) as error:
            raise StageError(f"{file} cannot be read: {error}.") from error

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> "LayoutIds":
        """The layouts as token ids, each as it is tokenised after what stands before it. X never depends on what follows: a
        piece that would change its last token is tokenised on its own."""
        asked = rendered_question(tokenizer)
        direct, explicit, before = (
            encoded_after(tokenizer, asked, text) for text in (self.direct, self.explicit, self.before_latents)
        )
        after = encoded_after(tokenizer, _ANCHOR, self.after_latents)
        end = self.think_tags[1] if self.think_tags else None
        return LayoutIds(direct, explicit, before, after, self.placeholder_token_id, end)


@dataclass(frozen=True, slots=True)
class LayoutIds:
    """What to append to X, as token ids."""

    direct: tuple[int, ...]
    explicit: tuple[int, ...]
    before_latents: tuple[int, ...]
    after_latents: tuple[int, ...]
    placeholder: int | None
    end_of_thinking: str | None = END_OF_THINKING
    """The text that ends a chain; None where a chain and its answer are one text."""

    @property
    def thinks_in_text(self) -> bool:
        """As of `Layout`."""
        return self.end_of_thinking is not None or bool(self.explicit)

    def latent(self, num_latents: int) -> tuple[int, ...]:
        """The latent layout, with placeholders where the engine overlays z."""
        return (*self.opened(num_latents), *self.after_latents)

    def opened(self, num_latents: int) -> tuple[int, ...]:
        """Latents after which the model thinks on."""
        assert self.placeholder is not None, "a layout for latents reserves a token"
        return (*self.before_latents, *(self.placeholder,) * num_latents)

    def split(self, reply: str) -> tuple[str, str | None]:
        """(chain, answer) of a reply in mode explicit; no answer where the chain did not end."""
        if self.end_of_thinking is None:
            return reply, reply
        chain, end, answer = reply.partition(self.end_of_thinking)
        return chain, answer if end else None

    def end_token(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        """The one token that ends a chain. Raises `StageError` for a base that ends it in another way."""
        ids = tokenizer.encode(self.end_of_thinking or "", add_special_tokens=False)
        if len(ids) != 1:
            how = f"{len(ids)} ({self.end_of_thinking})" if self.end_of_thinking else "none: it has no think tags"
            raise StageError(f"This needs a base that ends its chains with one token, and this one ends them with {how}.")
        return int(ids[0])


def encoded_after(tokenizer: "PreTrainedTokenizerBase", before: str, text: str) -> tuple[int, ...]:
    """`text` as it is tokenised behind `before`, where that leaves the ids of `before` as they are; else on its own.

    SentencePiece begins each text that stands alone with a blank.
    """
    joined = _behind(tokenizer, before, text)
    return tuple(tokenizer.encode(text, add_special_tokens=False) if joined is None else joined)


def _behind(tokenizer: "PreTrainedTokenizerBase", before: str, text: str) -> list[int] | None:
    """The ids that joining `text` adds to those of `before`; None where it changes them, or there are none."""
    first, joined = (tokenizer.encode(one, add_special_tokens=False) for one in (before, before + text))
    return joined[len(first) :] if first and joined[: len(first)] == first else None


def check_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `StageError` for a base that cannot render a conversation."""
    if not tokenizer.chat_template:
        raise StageError("The base has no chat template, so there is no way to render a question. Use an instruct model.")


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> list[int]:
    """X: the conversation through the chat template, up to where the model has to write."""
    check_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(str(text), add_special_tokens=False)


def rendered_question(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A question as the chat template renders it, up to where the model has to write; empty without one that does."""
    if not tokenizer.chat_template:
        return ""
    asked = [{"role": "user", "content": "?"}]
    try:
        return str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
    except Exception:  # whatever a template of others raises: it may want a system prompt
        return ""


def default_layout(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> Layout:
    """What follows from a base's tokenizer and chat template: Qwen3's think tags, as tokens or as plain text, whether or not
    the template opens the first one; or none. Raises `StageError` for a base without a chat template."""
    check_chat_template(tokenizer)
    opening, closing = THINK_TAGS
    asked, placeholder = rendered_question(tokenizer), _placeholder(tokenizer, vocab_size)
    knows_tags = closing in tokenizer.get_vocab() or closing in _template(tokenizer)
    if not knows_tags or asked.rstrip().endswith(closing):  # a template that closes the thinking wants none
        return Layout(direct="", before_latents="", after_latents="", think_tags=None, placeholder_token_id=placeholder)
    if not asked.rstrip().endswith(opening):
        return Layout(placeholder_token_id=placeholder)
    # "\n" behind "<think>\n" may be one token with it, which X has not.
    candidates = [f"\n{closing}\n\n", f"{closing}\n\n"]
    direct = next((text for text in candidates if _behind(tokenizer, asked, text) is not None), candidates[0])
    return Layout(direct=direct, before_latents="", placeholder_token_id=placeholder)


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """All of a base's chat templates: it may have several by name."""
    template = tokenizer.chat_template
    return " ".join(template.values()) if isinstance(template, dict) else str(template or "")


def _placeholder(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> int | None:
    """A token that nobody uses: the one that is made for latents, an id that has an embedding and no token, one that the
    tokenizer reserves, or, of special tokens only, one of pre-training that the chat template does not know. Else None."""
    vocabulary = tokenizer.get_vocab()
    if (made := vocabulary.get(LATENT_TOKEN)) is not None:
        return made
    if (unused := max(vocabulary.values()) + 1) < vocab_size:
        return unused
    used = _template(tokenizer)
    special = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {token: i for token, i in vocabulary.items() if _RESERVED.fullmatch(token)}
    named |= {token: i for token, i in special.items() if "reserved" in token.lower()}
    of_code = {token: i for token, i in special.items() if _OF_REPOSITORIES.fullmatch(token)}
    busy = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    free = (i for found in (named, of_code) for token, i in sorted(found.items()) if token not in used and token not in busy)
    return next(free, None)
