"""How the base that is served thinks in text, and which settings need that: known before the engine takes its time to start."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from vllm.reasoning import ReasoningParserManager

from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from reasoning_net.layout import NO_THINKING, THINK_TAGS, Layout, default_layout
from reasoning_net.tokenizer_check import load_tokenizer
from router.policy import Mode
from server.engine.errors import ConfigurationError
from server.settings import Settings

_PARSER = "qwen3"  # vLLM's for <think> and </think>, as tokens or as plain text


@dataclass(frozen=True, slots=True)
class Base:
    """Of one server."""

    layout: Layout
    tokenizer: PreTrainedTokenizerBase
    has_latents: bool
    """Whether its bundle has a network."""

    @property
    def ends_chains(self) -> bool:
        """Whether one token opens a chain, and one ends it: budgets, exits and a helper look for them."""
        tags = self.layout.think_tags
        return tags is not None and all(len(self.tokenizer.encode(tag, add_special_tokens=False)) == 1 for tag in tags)

    @property
    def advice(self) -> str | None:
        """What an operator should know of how it thinks. That it does not is the router's to say."""
        if not self.layout.thinks_in_text:
            return None
        if self.layout.think_tags is None:
            return (
                "This base has no think tags: mode explicit starts with the thinking prompt, and a chain and its answer are "
                "both the content. Budgets, exits and a helper, which need to know where a chain ends, are refused."
            )
        if not self.ends_chains:
            return (
                f"This base writes {' and '.join(self.layout.think_tags)} as several tokens each: budgets, exits, a helper, "
                "and schemas in mode explicit, which look for one, are refused."
            )
        return None

    def default_mode(self, settings: Settings) -> Mode:
        """Of requests that name none. Raises `ConfigurationError` for one that this base has not."""
        if self.layout.thinks_in_text:
            return settings.default_mode
        if settings.default_mode.thinks_in_text:
            raise ConfigurationError(f"--default-mode {settings.default_mode} cannot be. {NO_THINKING}")
        has_choice = settings.default_mode is not Mode.AUTO or self.has_latents
        return settings.default_mode if has_choice else Mode.DIRECT

    def check(self, settings: Settings) -> None:
        """Raise `ConfigurationError` for settings that would do nothing here."""
        self.default_mode(settings)
        given = {
            "--effort-budgets": settings.effort_budgets,
            "--answer-reserve-tokens": settings.answer_reserve_tokens,
            "--max-thinking-tokens": settings.max_thinking_tokens,
            "--exits always": settings.exits == "always",
            "--helper": settings.helper,
            "--soft-thinking": settings.soft_thinking,
        }
        if not self.ends_chains and (asked := [flag for flag, value in given.items() if value]):
            tags = self.layout.think_tags
            why = f"writes {tags[1]} as several tokens" if tags else "has no think tags"
            raise ConfigurationError(
                f"{asked[0]} needs a base that ends a chain with one token, and this one {why}. Leave it out, or name the "
                "base's --reasoning-parser if it thinks in another way."
            )


def base_of(args: Namespace, settings: Settings, bundle: Bundle | None) -> Base:
    """What is served with vLLM's flags; its reasoning parser becomes one of them, where nobody has named one and there is
    something to parse. Raises `ConfigurationError`, or `StageError` for a tokenizer that cannot be loaded."""
    tokenizer = load_tokenizer(args.tokenizer or args.model)
    if bundle is not None:
        layout, parser = bundle.manifest.layout, bundle.manifest.reasoning_parser
    else:
        layout, parser = _layout_of(tokenizer, args), _PARSER
    if args.reasoning_parser and layout.think_tags is None:
        layout = _as_parsed(layout, args.reasoning_parser, tokenizer)
    elif not args.reasoning_parser and layout.think_tags is not None:
        args.reasoning_parser = parser
    has_latents = bundle is not None and bundle.manifest.reasoning_net is not None
    base = Base(layout.prompted(settings.thinking_prompt), tokenizer, has_latents)
    base.check(settings)
    return base


def _layout_of(tokenizer: PreTrainedTokenizerBase, args: Namespace) -> Layout:
    """Of a base without a bundle, which needs no room for latents. One without a template can complete texts."""
    if args.chat_template:
        file = Path(args.chat_template)
        tokenizer.chat_template = file.read_text() if file.is_file() else args.chat_template
    try:
        return default_layout(tokenizer, 0).model_copy(update={"placeholder_token_id": None})
    except StageError:
        return Layout()


def _as_parsed(layout: Layout, name: str, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Of a base that thinks in a way of its own, which an operator has named."""
    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"--reasoning-parser {name} does not fit this base: {error}") from error
    opening, closing = parser.reasoning_start_str, parser.reasoning_end_str
    if not (opening and closing):
        return layout.model_copy(update={"think_tags": THINK_TAGS})
    return layout.model_copy(update={"think_tags": (opening, closing), "direct": f"{opening}\n\n{closing}\n\n"})
