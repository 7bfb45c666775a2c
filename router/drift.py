"""Whether live questions still look like the calibration's: the population stability index of the router's scores."""

import bisect
import math
from collections import Counter, deque

_WINDOW = 1000
_ENOUGH = 100


class Drift:
    """PSI over the last thousand scores against the calibration's quantiles. Below 0.1: alike; above 0.25: fit anew."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        """`edges`: the quantiles that cut the calibration's scores into equal parts, ascending."""
        self._edges = edges
        self._window: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def add(self, score: float) -> None:
        part = bisect.bisect_right(self._edges, score)
        self._window.append(part)
        self._counts[part] += 1
        if len(self._window) > _WINDOW:
            self._counts[self._window.popleft()] -= 1

    @property
    def psi(self) -> float | None:
        """None until a hundred scores were seen, or without a calibration."""
        total, parts = len(self._window), len(self._edges) + 1
        if not self._edges or total < _ENOUGH:
            return None
        expected = 1 / parts
        # Half a question more in each part: an empty one has no logarithm.
        shares = [(self._counts[part] + 0.5) / (total + 0.5 * parts) for part in range(parts)]
        return sum((share - expected) * math.log(share / expected) for share in shares)
