"""How much is still to be written: tokens that admitted requests are expected to generate, whether they wait or run.

What an autoscaler needs, and a count of requests does not say: a chain weighs as much as forty latent answers.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from router.calibration import Calibration
from router.policy import Mode
from server.observe.record import Record

_RECENT = 0.05  # weight of the newest answer in the mean of its mode, once there are many
_UNKNOWN_TOKENS = 256.0  # of an answer in a mode that none was seen of
_OVERDUE = 0.1  # what is longer than expected goes on for so much of what it has


class Workload:
    """Nothing is added up and taken off again: whoever asks looks at the records in flight, so what has ended is gone."""

    def __init__(self, known: Mapping[str, float], unseen: Callable[[str], int] = lambda _: 0) -> None:
        """`known`: mean tokens of an answer by mode, until some are seen. `unseen`: tokens that an engine request
        has written, and perhaps not given."""
        self._means, self._counts = dict(known), defaultdict[str, int](int, dict.fromkeys(known, 1))
        self._unseen = unseen
        self._records = dict[int, Record]()

    @contextmanager
    def holding(self, record: Record) -> Iterator[None]:
        """While the request runs or waits; what it came to is remembered, unless it was cut short."""
        self._records[id(record)] = record
        try:
            yield
        finally:
            del self._records[id(record)]
            if record.failure is None and record.ended is not None and not record.ask.only_route:
                self._learn(record)

    @property
    def tokens(self) -> float:
        """Expected still to be generated."""
        return sum(map(self._outstanding, tuple(self._records.values())))  # asked by another thread

    def _outstanding(self, record: Record) -> float:
        if record.ask.only_route:
            return 0.0
        expected, most = self.expected(record), record.most_tokens
        if expected is None:
            expected = record.answers * (_UNKNOWN_TOKENS if most is None else min(_UNKNOWN_TOKENS, most))
        done = max(record.generated_tokens, self._unseen(record.pass_id) if record.pass_id else 0)
        left = max(expected - done, _OVERDUE * done)
        return max(0.0, min(left, math.inf if most is None else most * record.answers - done))

    def expected(self, record: Record) -> float | None:
        """Tokens that the whole answer, or all answers, will have; None where nothing is known of its mode."""
        mode, decision, scores = record.mode, record.decision, record.scores
        each = self._means.get(mode or record.ask.mode)
        if mode is Mode.EXPLICIT and scores and scores.tokens is not None and math.isfinite(scores.tokens):
            each = scores.tokens
        if each is None:
            return None
        if decision and decision.thinking_budget is not None:
            each = min(each, decision.thinking_budget + self._means.get(Mode.DIRECT, 0.0))
        return record.answers * (each if record.most_tokens is None else min(each, record.most_tokens))

    def _learn(self, record: Record) -> None:
        """By the mode that was asked for, which is all that is known of a request that waits, and by the one that answered."""
        each = record.generated_tokens / record.answers
        for mode in {record.ask.mode, record.mode or record.ask.mode}:
            self._counts[mode] += 1
            mean = self._means.get(mode, each)
            self._means[mode] = mean + max(_RECENT, 1 / self._counts[mode]) * (each - mean)


def known_tokens(calibration: Calibration | None) -> dict[str, float]:
    """What a calibration says of answers, by mode."""
    if calibration is None:
        return {}
    chains = max(calibration.points, key=lambda point: point.explicit_share, default=calibration.point)
    known = {Mode.AUTO: calibration.point.mean_tokens, Mode.EXPLICIT: chains.mean_tokens}
    return {str(mode): tokens for mode, tokens in (calibration.answer_tokens | known).items()}
