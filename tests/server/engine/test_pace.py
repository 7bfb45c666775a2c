import math

import pytest
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from server.engine.pace import Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def step(pace: Pace, clock: Clock, seconds: float, tokens: int, *, running: int, waiting: int = 0) -> None:
    clock.now += seconds
    iteration = IterationStats()
    iteration.num_generation_tokens = tokens
    pace.record(SchedulerStats(num_running_reqs=running, num_waiting_reqs=waiting, num_skipped_waiting_reqs=1), iteration)


def test_the_pace_is_the_engines_and_follows_its_load() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert math.isnan(pace.seconds_per_token)
    for _ in range(50):
        step(pace, clock, 0.02, 1, running=1)
    assert pace.seconds_per_token == pytest.approx(0.02)
    for _ in range(600):
        step(pace, clock, 0.04, 16, running=16, waiting=3)
    assert pace.seconds_per_token == pytest.approx(0.04 / 16, rel=0.01)
    assert pace.waiting == 4


def test_time_in_which_nobody_wanted_anything_does_not_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    idle = SchedulerStats()
    for _ in range(5):
        for tokens in range(1, 11):
            step(pace, clock, 0.02, 1, running=tokens < 10)
        pace.record(idle, None)
        clock.now += 3600
    assert pace.seconds_per_token == pytest.approx(0.02, rel=0.3)
