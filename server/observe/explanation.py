"""What the latents of an answer say, as clients are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_net.checker import Reading, Trace, described


@dataclass(frozen=True, slots=True)
class Explanation:
    reading: Reading
    answer: int | None
    """None: the answer has no whole number in it."""
    trace: Trace
    """Steps that lead to the answer; empty where none do."""
    verified: Sequence[bool] | None = None
    """Of the steps: whether each follows changes of the question. None: they were not put to the test."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All latents, as a user reads them."""
        return described(self.reading, self.trace, self.verified)

    @property
    def decodability(self) -> float | None:
        return None if self.answer is None else self.reading.decodability(self.answer)

    @property
    def is_verified(self) -> bool | None:
        """Whether there is a reason, and all of it holds; None where that could not be put to the test."""
        if self.trace and self.verified is None:
            return None
        return bool(self.trace) and all(self.verified or ())
