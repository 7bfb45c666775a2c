"""Who gets a request: what balancers do, and what they could do with our gauges, however old these are."""

import itertools
import math
import random
from collections.abc import Callable

import simpy

from deploy.simulate.replica import Replica, Request, work_seconds

Pick = Callable[[Request, list[Replica]], Replica]


def _hashed(request: Request, replicas: list[Replica]) -> int:
    return random.Random(request.session).randrange(len(replicas))


class Scraped:
    """Gauges as a balancer knows them: as old as the last scrape, which is of all replicas at once. `adds`: with what it has
    itself sent since. `choices`: of so many drawn replicas the least loaded, or of all."""

    def __init__(self, env: simpy.Environment, every: float, gauge: str, *, choices: int = 0, adds: bool = False) -> None:
        self._env, self._every, self._gauge, self._choices, self._adds = env, every, gauge, choices, adds
        self._seen, self._at, self._random = dict[int, float](), -math.inf, random.Random(1)

    def __call__(self, request: Request, replicas: list[Replica]) -> Replica:
        if self._env.now - self._at >= self._every:
            self._seen = {one.place: getattr(one, self._gauge) for one in replicas}
            self._at = self._env.now
        drawn = self._random.sample(replicas, min(self._choices or len(replicas), len(replicas)))  # ties, too
        best = min(drawn, key=lambda one: self._seen.get(one.place, 0.0))
        if self._adds:
            weight = {"requests": 1.0, "owed": request.expected}.get(self._gauge, work_seconds(request.mode))
            self._seen[best.place] = self._seen.get(best.place, 0.0) + weight
        return best


def _round_robin() -> Pick:
    turn = itertools.count()
    return lambda _, replicas: replicas[next(turn) % len(replicas)]


def _session(request: Request, replicas: list[Replica]) -> Replica:
    return replicas[_hashed(request, replicas)]


def _bounded(request: Request, replicas: list[Replica]) -> Replica:
    """Envoy's `hash_balance_factor`: the next on the ring where one has half as many again as the mean."""
    start, most = _hashed(request, replicas), 1.5 * (1 + sum(one.requests for one in replicas)) / len(replicas)
    ring = (replicas[(start + i) % len(replicas)] for i in range(len(replicas)))
    return next((one for one in ring if one.requests < most), replicas[start])


POLICIES: dict[str, Callable[[simpy.Environment], Pick]] = {
    "round robin": lambda _: _round_robin(),
    "least requests": lambda env: Scraped(env, 0, "requests"),
    "session": lambda _: _session,
    "session, bounded": lambda _: _bounded,
    "tokens": lambda env: Scraped(env, 0, "owed"),
    "seconds": lambda env: Scraped(env, 0, "seconds"),
    "work": lambda env: Scraped(env, 0, "work"),
    "seconds, exact": lambda env: Scraped(env, 0, "seconds"),
    "seconds, blind": lambda env: Scraped(env, 0, "seconds"),
    "seconds, 5 s old": lambda env: Scraped(env, 5, "seconds"),
    "seconds, 15 s old": lambda env: Scraped(env, 15, "seconds"),
    "of two, 5 s old": lambda env: Scraped(env, 5, "seconds", choices=2),
    "of two, 15 s old": lambda env: Scraped(env, 15, "seconds", choices=2),
    "5 s old, and own": lambda env: Scraped(env, 5, "seconds", adds=True),
    "15 s old, and own": lambda env: Scraped(env, 15, "seconds", adds=True),
}
ERRORS = {"seconds, exact": 0.0, "seconds, blind": math.inf}
"""Of expected chains, in tokens; else the probe's."""
