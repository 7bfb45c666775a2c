"""DiffAdapt (ICLR 2026): Easy, Normal and Hard questions, each thought through in its own way. Always explicit.

The paper trains a classifier on labels from ten explicit answers: Normal where enough of them are right and their tokens are
certain, else Hard where too few are right, else Easy: right, but uncertain. Where the bundle's probe was fitted on these labels
(`router fit --labels diffadapt`) its likeliest class decides. Else the classes are taken from the calibrated probabilities,
which know no entropies: Easy is then where the cheap mode would do as well.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from router.policy import Decision, Limits, Policy, Scores, is_usable

_PROMPTS = {
    "easy": "I solve this directly, and then verify the result.",
    "normal": "I work through this systematically, step by step.",
    "hard": "This is hard, and I have little room: I choose one strategy, and keep to what is decisive.",
}
"""After the paper's descriptions, in words of ours."""


class Strategy(BaseModel):
    """How one class is thought through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float
    budget: float = Field(description="Share of the generation limit.")
    suffix: str = Field("", description="What the thinking starts with.")


class Strategies(BaseModel):
    """Temperatures and budgets of the paper; a bundle may have its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    easy: Strategy = Strategy(temperature=0.5, budget=0.4, suffix="")
    normal: Strategy = Strategy(temperature=0.8, budget=1.0, suffix="")
    hard: Strategy = Strategy(temperature=0.4, budget=0.5, suffix="")
    easy_from: float = Field(0.8, description="P(correct) of the cheap mode.")
    hard_below: float = Field(
        0.5, description="P(correct) of explicit thinking; such a question fails fast, on half the budget."
    )
    max_tokens: int | None = Field(None, gt=0, description="Generation limit; None: what a request, or the model, allows.")

    @classmethod
    def prompted(cls, opening: str) -> "Strategies":
        """With sentences that thinking starts with, for bases that follow them. `opening`: what stands before a chain."""
        strategies = cls()
        named = ((name, getattr(strategies, name)) for name in _PROMPTS)
        return cls(**{name: one.model_copy(update={"suffix": f"{opening}{_PROMPTS[name]}\n"}) for name, one in named})


@dataclass(frozen=True)
class DiffAdapt(Policy):
    name = "diffadapt"
    strategies: Strategies

    def decide(self, scores: Scores, limits: Limits) -> Decision:
        strategies = self.strategies
        if scores.normal is not None and scores.hard is not None and scores.easy is not None:
            return self._classified({"normal": scores.normal, "hard": scores.hard, "easy": scores.easy}, limits)
        cheap, explicit = scores.correct(limits.cheap), scores.explicit
        if not is_usable(cheap, explicit):
            return Decision(limits.thinking, None, None, "score_not_finite", limits.budget(None))
        is_right = explicit is None or explicit >= strategies.hard_below
        needs_thinking = cheap is None or cheap < strategies.easy_from
        if is_right and needs_thinking:
            return self._think(strategies.normal, cheap, strategies.easy_from, "normal", limits)
        if not is_right:
            return self._think(strategies.hard, explicit, strategies.hard_below, "hard", limits)
        return self._think(strategies.easy, cheap, strategies.easy_from, "easy", limits)

    def _classified(self, classes: dict[str, float], limits: Limits) -> Decision:
        """By the likeliest class; of equally likely ones the first."""
        if not is_usable(*classes.values()):
            return Decision(limits.thinking, None, None, "score_not_finite", limits.budget(None))
        likeliest = max(classes, key=lambda name: classes[name])
        return self._think(getattr(self.strategies, likeliest), classes[likeliest], None, likeliest, limits)

    def _think(self, strategy: Strategy, score: float | None, threshold: float | None, reason: str, limits: Limits) -> Decision:
        most = self.strategies.max_tokens or limits.max_tokens
        budget = limits.budget(None if most is None else strategy.budget * most)
        return Decision(limits.thinking, score, threshold, reason, budget, strategy.temperature, strategy.suffix)
