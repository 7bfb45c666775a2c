"""DiffAdapt (ICLR 2026): Easy, Normal and Hard questions, each thought through in its own way.

The paper trains a classifier on labels from accuracy and token entropy. Ours takes the classes from the calibrated
probabilities: Easy where the cheap mode would do, Hard where even explicit thinking would not. Always explicit.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from router.policy import Decision, Limits, Policy, Scores, is_usable


class Strategy(BaseModel):
    """How one class is thought through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float
    budget: float = Field(description="Share of the longest chain.")
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


@dataclass(frozen=True)
class DiffAdapt(Policy):
    name = "diffadapt"
    strategies: Strategies
    longest_tokens: float

    def decide(self, scores: Scores, limits: Limits) -> Decision:
        strategies = self.strategies
        cheap, explicit = scores.correct(limits.cheap), scores.explicit
        if not is_usable(cheap, explicit):
            return Decision(limits.thinking, None, None, "score_not_finite", limits.budget(None))
        if explicit is not None and explicit < strategies.hard_below:
            return self._think(strategies.hard, explicit, strategies.hard_below, "hard", limits)
        if cheap is not None and cheap >= strategies.easy_from:
            return self._think(strategies.easy, cheap, strategies.easy_from, "easy", limits)
        return self._think(strategies.normal, cheap, strategies.easy_from, "normal", limits)

    def _think(self, strategy: Strategy, score: float | None, threshold: float, reason: str, limits: Limits) -> Decision:
        budget = limits.budget(strategy.budget * self.longest_tokens)
        return Decision(limits.thinking, score, threshold, reason, budget, strategy.temperature, strategy.suffix)
