"""The mode with the greatest P(correct) − λ · tokens."""

from dataclasses import dataclass

from router.calibration import Calibration
from router.policy import Decision, Limits, Mode, Policy, Scores, is_usable


@dataclass(frozen=True)
class Utility(Policy):
    """Needs a calibrated probe.

    A cheap answer costs so little that it is tried, and checked, wherever knowing it could pay: when it would be right and
    explicit thinking's price saved. The check compares what the answer's own confidence makes of P(correct). An answer that is
    certain to be right is given as it comes: a stream of it does not wait.
    """

    name = "utility"
    calibration: Calibration
    price: float

    def decide(self, scores: Scores, limits: Limits) -> Decision:
        cheap = limits.cheap
        sure = scores.correct(cheap)
        if sure is None:
            return self._explicit(scores, limits, None, None, "no_score")
        if not is_usable(scores.direct, sure, scores.explicit, scores.tokens):
            return self._explicit(Scores(), limits, None, None, "score_not_finite")
        explicit = self._explicit_utility(scores)
        values = {mode: self._utility(mode, scores) for mode in {Mode.DIRECT, cheap}}
        best = max(values, key=lambda mode: (values[mode], mode is cheap))
        if limits.max_cost is not None and self._explicit_tokens(scores) > limits.max_cost:
            return Decision(best, scores.correct(best), None, "cost_limit")
        checks = limits.can_escalate and self.calibration.confidence is not None
        threshold = explicit + self.price * self._answer_tokens(cheap)
        if values[best] >= explicit:
            certain_from = self.calibration.certain_from
            checks = checks and best is cheap and (certain_from is None or sure < certain_from)
            return Decision(best, scores.correct(best), threshold, "worth_it", check=checks)
        # The answer, were it known to be right, would save what explicit thinking costs beyond its accuracy.
        if checks and sure * (1 - explicit) > self.price * self._answer_tokens(cheap):
            return Decision(cheap, sure, threshold, "worth_a_try", check=True)
        return self._explicit(scores, limits, sure, threshold, "doubtful")

    def check(self, scores: Scores, confidence: float, limits: Limits) -> Decision:
        cheap = limits.cheap
        prior = scores.correct(cheap)
        assert prior is not None, "only answers that were scored are checked"
        assert self.calibration.confidence is not None, "only calibrated answers are checked"
        sure = self.calibration.confidence.posterior(prior, confidence)
        threshold = self._explicit_utility(scores)  # the answer's own tokens are spent
        if not is_usable(confidence) or sure < threshold:
            return self._explicit(scores, limits, sure, threshold, "answer_doubtful")
        return Decision(cheap, sure, threshold, "answer_confident")

    def _explicit(self, scores: Scores, limits: Limits, score: float | None, threshold: float | None, reason: str) -> Decision:
        wanted = None if scores.tokens is None else self.calibration.budget_ratio * scores.tokens
        return Decision(limits.thinking, score, threshold, reason, thinking_budget=limits.budget(wanted))

    def _utility(self, mode: Mode, scores: Scores) -> float:
        return (scores.correct(mode) or 0.0) - self.price * self._answer_tokens(mode)

    def _explicit_utility(self, scores: Scores) -> float:
        sure = 1.0 if scores.explicit is None else scores.explicit
        return sure - self.price * self._explicit_tokens(scores)

    def _explicit_tokens(self, scores: Scores) -> float:
        return self.calibration.longest_tokens if scores.tokens is None else scores.tokens

    def _answer_tokens(self, mode: Mode) -> float:
        return self.calibration.answer_tokens.get(mode, 0.0)
