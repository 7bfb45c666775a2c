"""The entropy of a direct answer's first token. No training; the policy of servers without a probe.

A stopgap of ours, not to be trusted: on the demo it tells nothing (AUROC 0.44 and 0.51). GlimpRouter is something else: it
looks at the first tokens of reasoning steps, and hands steps to a larger model.
"""

from dataclasses import dataclass

from router.policy import Decision, Limits, Policy, Scores, is_usable


@dataclass(frozen=True)
class Entropy(Policy):
    name = "entropy"
    threshold: float
    """Nats."""

    def decide(self, scores: Scores, limits: Limits) -> Decision:
        entropy, budget = scores.entropy, limits.budget(None)
        if entropy is None:
            return Decision(limits.thinking, None, None, "no_score", budget)
        if not is_usable(entropy):
            return Decision(limits.thinking, None, self.threshold, "score_not_finite", budget)
        if entropy <= self.threshold:
            return Decision(limits.cheap, entropy, self.threshold, "entropy_low")
        return Decision(limits.thinking, entropy, self.threshold, "entropy_high", budget)
