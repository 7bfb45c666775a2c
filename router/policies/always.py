"""The same mode for every question: what a router has to beat."""

from dataclasses import dataclass

from router.policy import Decision, Limits, Mode, Policy, Scores


@dataclass(frozen=True)
class Always(Policy):
    mode: Mode

    @property
    def name(self) -> str:
        return f"always-{self.mode}"

    def decide(self, scores: Scores, limits: Limits) -> Decision:
        if self.mode is Mode.EXPLICIT:
            return Decision(limits.thinking, None, None, "always", limits.budget(None))
        mode = Mode.DIRECT if self.mode is Mode.DIRECT else limits.cheap
        return Decision(mode, scores.correct(mode), None, "always")
