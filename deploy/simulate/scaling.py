"""How many replicas: what an HPA makes of one gauge, and what it costs."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import simpy

from deploy.simulate.replica import Events, Replica, Request
from deploy.simulate.routing import Pick

_EVERY_SECONDS, _DOWN_SECONDS, _TOLERANCE = 15.0, 300.0, 0.1  # an HPA's defaults
_START_SECONDS = 60.0  # from the decision to the first answer: assumed; the server itself takes 20 to 25


@dataclass
class Fleet:
    """Replicas that come, and that go when their answers have ended."""

    env: simpy.Environment
    pick: Pick
    count: int
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sessions, self._made = dict[int, int](), 0
        self.ready, self._leaving, self._coming = list[Replica](), list[Replica](), 0
        self.replica_seconds = 0.0
        self.most = self.count
        for _ in range(self.count):
            self._add()

    def _add(self) -> None:
        self.ready.append(Replica(self.env, self._sessions, self._made))
        self._made += 1

    def take(self, request: Request) -> None:
        self.requests.append(request)
        self.pick(request, self.ready).take(request)

    def scale(self, gauge: Callable[[Replica], float], target: float, least: int, most: int, until: float) -> Events:
        """As an HPA with `AverageValue`: at most twice as many a step, down only to the most of what five minutes wanted."""
        wanted = deque[tuple[float, int]]()
        while self.env.now < until:
            yield self.env.timeout(_EVERY_SECONDS)
            self._count_seconds(_EVERY_SECONDS)
            now, current = self.env.now, len(self.ready) + self._coming
            share = sum(map(gauge, [*self.ready, *self._leaving])) / current / target
            desired = current if abs(share - 1) <= _TOLERANCE else math.ceil(current * share)
            wanted.append((now, max(least, min(most, desired, 2 * current))))
            while wanted[0][0] < now - _DOWN_SECONDS:
                wanted.popleft()
            if wanted[-1][1] > current:
                for _ in range(wanted[-1][1] - current):
                    self.env.process(self._start())
            elif (keep := max(count for _, count in wanted)) < current and not self._coming:
                for one in self.ready[keep:]:
                    self._leaving.append(one)
                del self.ready[keep:]

    def _start(self) -> Events:
        self._coming += 1
        yield self.env.timeout(_START_SECONDS)
        self._coming -= 1
        self._add()
        self.most = max(self.most, len(self.ready))

    def _count_seconds(self, seconds: float) -> None:
        """Paid for from the decision on, and until the last answer."""
        self._leaving = [one for one in self._leaving if one.requests]
        self.replica_seconds += seconds * (len(self.ready) + len(self._leaving) + self._coming)
