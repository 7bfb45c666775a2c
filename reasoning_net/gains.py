"""What can be gained on a base, from a sample of questions that it has answered without thinking and with a chain."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_MOSTLY = 0.9


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, answered both ways, greedily."""

    prompt_tokens: int
    direct_right: float
    direct_tokens: int
    explicit_right: float
    explicit_tokens: int
    """Of chain and reply."""
    ended: bool
    """The chain, within the limit."""
    reply_tokens: int
    """Of the longer of both replies, without the chain."""
    direct_seconds: float
    explicit_seconds: float
    """Its share of a batch's."""


@dataclass(frozen=True, slots=True)
class Gains:
    questions: int
    direct: float
    explicit: float
    direct_tokens: float
    explicit_tokens: float
    ended: float
    """Share of the chains."""
    as_good: float
    """Share of the questions on which the direct answer is no worse."""
    saving: float
    """Share of explicit mode's tokens that choosing rightly for every question saves, at no loss."""

    @classmethod
    def of(cls, asked: Sequence[Asked]) -> "Gains":
        kept = [one for one in asked if one.direct_right >= one.explicit_right]
        saved = sum(one.explicit_tokens - one.direct_tokens for one in kept)
        return cls(
            questions=len(asked),
            direct=statistics.fmean(one.direct_right for one in asked),
            explicit=statistics.fmean(one.explicit_right for one in asked),
            direct_tokens=statistics.fmean(one.direct_tokens for one in asked),
            explicit_tokens=statistics.fmean(one.explicit_tokens for one in asked),
            ended=statistics.fmean(one.ended for one in asked),
            as_good=len(kept) / len(asked),
            saving=max(0.0, saved / sum(one.explicit_tokens for one in asked)),
        )

    def error(self, share: float) -> float:
        """Standard error of a share of the sample's questions."""
        return math.sqrt(share * (1 - share) / self.questions)

    @property
    def gap(self) -> float:
        """What latents could close: accuracy that chains bring."""
        return self.explicit - self.direct

    def sentences(self) -> list[str]:
        """For whoever is about to spend hours."""
        explicit, direct = (f"{share:.2f} ± {self.error(share):.2f}" for share in (self.explicit, self.direct))
        found = [
            f"{self.questions} questions: explicit {explicit} with {self.explicit_tokens:,.0f} tokens an answer, "
            f"direct {direct} with {self.direct_tokens:,.0f}."
        ]
        if self.ended < _MOSTLY:
            found.append(f"Only {self.ended:.0%} of the chains ended within the limit: give more with --max-thinking-tokens.")
        if self.gap <= 0:
            return [
                *found,
                "Chains bring nothing on these questions: serve direct answers; neither probe nor latents are needed.",
            ]
        return [
            *found,
            f"Direct is as good on {self.as_good:.0%} ± {self.error(self.as_good):.0%} of them: whoever knew on which would "
            f"save {self.saving:.0%} of the tokens at no loss. A probe knows it in part, so expect less.",
            f"Latents can close up to {self.gap:.2f} of accuracy at the price of a direct answer; how much, training tells.",
        ]
