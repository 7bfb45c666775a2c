"""One replica, as vLLM's loop: a step writes one token for every answer that runs, and reads the questions that found room.

Its times were measured on one server: README.md's table of speed, on two cores.
"""

import heapq
import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

ANSWER_TOKENS, CHAIN_TOKENS = 6, 250
_ALONE = (3.826 - 0.062) / CHAIN_TOKENS  # seconds of a step with one answer
_CROWD = 64 * (1 - 1.544 / 17.723)  # of 64 at once so many write, on average; the others wait to be read
_CROWDED = (17.723 - 1.544) / CHAIN_TOKENS
_PER_SECOND = {"latent": 16.6, "direct": 31.8}  # requests a second, 64 at once
EACH_SECONDS = (_CROWDED - 0.26 * 0.0255 - _ALONE) / (_CROWD - 1)  # less what reading takes of such a step
STEP_SECONDS = _ALONE - EACH_SECONDS
READ_SECONDS = {
    mode: (64 / per_second / ANSWER_TOKENS - STEP_SECONDS - 64 * EACH_SECONDS) / (64 / ANSWER_TOKENS)
    for mode, per_second in _PER_SECOND.items()
}
READ_SECONDS["explicit"] = READ_SECONDS["direct"]
# The product's.
RUN, HOLD = 64, 128  # answers that run, and that run or wait: more are refused
_TOKEN_SECONDS = STEP_SECONDS / RUN + EACH_SECONDS  # of a full batch
PACE_SECONDS = 5.0  # of work, over which seconds a token are averaged (server/engine/pace.py)
Events = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class Request:
    mode: str
    tokens: int
    expected: float  # tokens
    session: int
    turn: int
    arrived: float = 0.0
    began: int = 0  # step
    first: float = math.inf
    ended: float = math.inf
    place: int = -1


def work_seconds(mode: str) -> float:
    """Of the engine, for one request of a full batch."""
    tokens = CHAIN_TOKENS if mode == "explicit" else ANSWER_TOKENS
    return READ_SECONDS[mode] + tokens * _TOKEN_SECONDS


class Replica:
    def __init__(self, env: simpy.Environment, sessions: dict[int, int], place: int = 0) -> None:
        self.env, self.place = env, place
        self.waiting, self.running, self._clock, self._read_by = deque[Request](), dict[int, Request](), 0, sessions
        self._ends, self._woken, self._names = list[tuple[int, int]](), env.event(), 0
        self._owed, self._owed_at = 0.0, 0  # at which step
        self.pace = work_seconds("latent") / ANSWER_TOKENS  # seconds a token
        self._seconds = self._tokens = 0.0
        env.process(self._run())

    @property
    def requests(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def seconds(self) -> float:
        """What `latentserve_expected_seconds_outstanding` says."""
        return self.owed * self.pace

    @property
    def work(self) -> float:
        """What no gauge says: seconds of full batches, with what is still to be read."""
        return self.owed * _TOKEN_SECONDS + sum(READ_SECONDS[one.mode] for one in self.waiting)

    def take(self, request: Request) -> bool:
        if self.requests >= HOLD:
            return False
        request.place = self.place
        self.waiting.append(request)
        self._owed += request.expected
        if not self._woken.triggered:
            self._woken.succeed()
        return True

    def _run(self) -> Events:
        while True:
            if not self.requests:
                self._woken = self.env.event()
                yield self._woken
            read = [self.waiting.popleft() for _ in range(min(len(self.waiting), RUN - len(self.running)))]
            for request in read:
                self._names += 1
                request.began = self._clock
                self.running[self._names] = request
                heapq.heappush(self._ends, (self._clock + request.tokens, self._names))
            seconds = STEP_SECONDS + EACH_SECONDS * len(self.running) + sum(map(self._read_seconds, read))
            yield self.env.timeout(seconds)
            self._clock += 1
            for request in read:
                request.first = self.env.now
            self._measure(seconds, len(self.running))
            while self._ends and self._ends[0][0] <= self._clock:
                self.running.pop(heapq.heappop(self._ends)[1]).ended = self.env.now

    def _read_seconds(self, request: Request) -> float:
        known = self._read_by.get(request.session) == self.place
        self._read_by[request.session] = self.place
        return READ_SECONDS[request.mode] * (1 if known else request.turn)

    def _measure(self, seconds: float, tokens: int) -> None:
        kept = math.exp(-seconds / PACE_SECONDS)
        self._seconds, self._tokens = self._seconds * kept + seconds, self._tokens * kept + tokens
        self.pace = self._seconds / self._tokens

    @property
    def owed(self) -> float:
        """What `latentserve_expected_tokens_outstanding` says; what is overdue goes on for a tenth of what it has."""
        if self._owed_at != self._clock:
            written = ((one.expected, self._clock - one.began) for one in self.running.values())
            self._owed = sum(max(expected - done, 0.1 * done) for expected, done in written)
            self._owed += sum(one.expected for one in self.waiting)
            self._owed_at = self._clock
        return self._owed
