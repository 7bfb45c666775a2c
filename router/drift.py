"""Whether live questions still look like the calibration's: the population stability index of the router's scores."""

import bisect
import math
from collections import Counter, deque

_WINDOW = 1000
_ENOUGH = 100


class Drift:
    """PSI over the last thousand scores against the calibration's quantiles. Below 0.1: alike; above 0.25: fit anew."""

    def __init__(self, edges: tuple[float, ...], shares: tuple[float, ...]) -> None:
        """`edges`, ascending, cut the scores into parts; `shares` of the calibration's scores are in each."""
        self._edges, self.expected = edges, shares
        self.seen = [0] * len(shares)
        """Scores in each part, ever: what adds up over replicas."""
        self._window: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def add(self, score: float) -> None:
        part = bisect.bisect_right(self._edges, score)
        if self.seen:
            self.seen[part] += 1
        self._window.append(part)
        self._counts[part] += 1
        if len(self._window) > _WINDOW:
            self._counts[self._window.popleft()] -= 1

    @property
    def psi(self) -> float | None:
        """None until a hundred scores were seen, or without a calibration."""
        total, parts = len(self._window), len(self.expected)
        if not parts or total < _ENOUGH:
            return None
        # Half a question more in each part: an empty one has no logarithm.
        shares = [(self._counts[part] + 0.5) / (total + 0.5 * parts) for part in range(parts)]
        pairs = zip(shares, self.expected, strict=True)
        return sum((share - expected) * math.log(share / expected) for share, expected in pairs if expected)
