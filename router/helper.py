"""When a stronger model writes a step of a chain: by what the own model's beginning of that step looks like.

glimp    the entropy of the step's first token, which is generated anyway (GlimpRouter, 2601.05110)
reflect  words of doubt or of checking in its first twenty tokens (Speculative Thinking, 2504.12329)
random   the control: the same share of steps, whichever

The papers have fixed thresholds (1.0 nats); here a share of steps is asked for, and the threshold is a quantile of what this
server has seen lately.
"""

import random
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Policy = Literal["glimp", "reflect", "random"]
_PEEK_TOKENS = 20
_VERIFY_TOKENS = 125
_FIRST_THRESHOLD = 1.0  # nats: GlimpRouter's, until there are enough glimpses
_ENOUGH = 50
_DOUBT = re.compile(r"\b(wait|alternatively|hold on|another)\b", re.IGNORECASE)
_VERIFY = re.compile(r"\b(verify|think again|recap|check)\b", re.IGNORECASE)


class HelpRule(BaseModel):
    """Which steps a helper writes, and how much of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy = "glimp"
    share: float = Field(0.2, ge=0, le=1, description="Of the steps, at most; glimp's threshold follows from it.")
    threshold: float | None = Field(None, ge=0, description="glimp: nats, instead of what the share comes to.")
    max_tokens: int = Field(4096, ge=1, description="That the helper may write for one answer.")
    step_tokens: int = Field(512, ge=1, description="Limit on a step of the helper's.")
    sure: float = Field(0.98, ge=0, le=1, description="P(correct | explicit) from which on nobody is asked for help.")

    def within(self, server: "HelpRule") -> "HelpRule":
        """Of a request: no more of the helper's than the operator grants."""
        bounds = {name: min(getattr(self, name), getattr(server, name)) for name in ("share", "max_tokens", "step_tokens")}
        return self.model_copy(update=bounds)

    @property
    def peek_tokens(self) -> int:
        """Of a step, that are looked at before anything of it is given."""
        return _PEEK_TOKENS if self.policy == "reflect" else 1


class Glimpses:
    """Entropies of steps' first tokens, lately."""

    def __init__(self, most: int = 1000) -> None:
        self._nats = deque[float](maxlen=most)

    def add(self, nats: float) -> None:
        self._nats.append(nats)

    def threshold(self, share: float) -> float:
        """Above which so large a share of them lies."""
        if len(self._nats) < _ENOUGH:
            return _FIRST_THRESHOLD
        ordered = sorted(self._nats)
        return ordered[min(len(ordered) - 1, int((1 - share) * len(ordered)))]


@dataclass(slots=True)
class Help:
    """That one answer got."""

    helped: list[bool] = field(default_factory=list)
    """By step of the chain: whether the helper wrote it."""
    tokens: int = 0
    wanted: int = 0
    """That it may write at most, in the step that it is asked for."""
    failed: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When it was waited for, on the clock of `time.perf_counter`."""

    def public(self) -> dict[str, Any]:
        seconds = sum(end - start for start, end in self.spans)
        return {
            "steps": sum(self.helped), "of": len(self.helped), "tokens": self.tokens, "seconds": round(seconds, 5),
            "failed": self.failed,
        }  # fmt: skip


def tokens_of_help(
    rule: HelpRule, entropy: float, beginning: str, glimpses: Glimpses, helped: Sequence[bool], chance: random.Random
) -> int:
    """How many tokens the helper may write in place of the step that begins so; 0: none. `helped`: the steps before it, by
    whether they were written by the helper."""
    if (sum(helped) + 1) > rule.share * (len(helped) + 1) + 1:  # one more than the share, so that a chain's first may be
        return 0
    if rule.policy == "random":
        return rule.step_tokens if chance.random() < rule.share else 0
    if rule.policy == "reflect":
        if _VERIFY.search(beginning):
            return min(_VERIFY_TOKENS, rule.step_tokens)
        return min(_PEEK_TOKENS, rule.step_tokens) if _DOUBT.search(beginning) else 0
    threshold = glimpses.threshold(rule.share) if rule.threshold is None else rule.threshold
    return rule.step_tokens if entropy > threshold else 0
