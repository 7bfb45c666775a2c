"""Requests as they come: sessions begin as a Poisson process, and go on whatever became of their former turns."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import simpy

from deploy.simulate.replica import ANSWER_TOKENS, CHAIN_TOKENS, Events, Request

_APART_SECONDS = 20.0  # turns of a session, on average: assumed
# Measured: router/README.md. Chains differ from their mean by 73 tokens on average, from the probe's expectation by 22.
_CHAIN_ERROR, PROBE_ERROR = 73.0, 22.0
_SIGMA = math.sqrt(math.pi / 2)  # of a normal distribution whose mean absolute value is one


@dataclass(frozen=True)
class Load:
    rate: Callable[[float], float]
    """Requests a second, by time."""
    explicit: Callable[[float], float]
    """Share that thinks in text, by time; the others are latent."""
    seconds: float
    turns: float = 1.0
    """Of a session, on average."""
    error_tokens: float = PROBE_ERROR
    """Of expected chains, on average. inf: nothing is expected but their mean."""
    seed: int = 0

    def send(self, env: simpy.Environment, take: Callable[[Request], None]) -> Events:
        drawn, session = random.Random(self.seed), 0
        while env.now < self.seconds:
            yield env.timeout(drawn.expovariate(self.rate(env.now) / self.turns))
            session += 1
            env.process(self._talk(env, take, session, random.Random(f"{self.seed} {session}")))

    def _talk(self, env: simpy.Environment, take: Callable[[Request], None], session: int, drawn: random.Random) -> Events:
        turn = 1
        while env.now < self.seconds:
            if drawn.random() < self.explicit(env.now):
                tokens = max(20, round(drawn.gauss(CHAIN_TOKENS, _CHAIN_ERROR * _SIGMA)))
                error = drawn.gauss(0, _SIGMA)
                expected = max(1.0, tokens + self.error_tokens * error) if math.isfinite(self.error_tokens) else CHAIN_TOKENS
                take(Request("explicit", tokens, expected, session, turn, env.now))
            else:
                take(Request("latent", ANSWER_TOKENS, ANSWER_TOKENS, session, turn, env.now))
            if drawn.random() < 1 / self.turns:
                return
            turn += 1
            yield env.timeout(drawn.expovariate(1 / _APART_SECONDS))
