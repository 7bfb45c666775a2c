"""What a reply's limit leaves for its chain, so that an answer always follows."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reserve:
    """Tokens of a reply that are kept for its answer."""

    tokens: int
    tags: int = 2
    """That open and close a chain: vLLM's budget does not count them."""

    def budget(self, limit: int) -> int:
        """Thinking tokens in a reply of at most `limit` tokens. Where these are few, half of them are the answer's."""
        return max(0, limit - min(self.tokens, (limit + 1) // 2) - self.tags)


def reserve_of(config: Any, tokens: int | None) -> Reserve | None:
    """`config`: vLLM's of the base's reasoning."""
    if tokens is None:
        return None
    return Reserve(tokens, len(config.reasoning_start_token_ids or ()) + len(config.reasoning_end_token_ids or ()))
