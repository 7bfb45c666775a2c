import random

from router.drift import Drift

EDGES, EQUAL = tuple(i / 10 for i in range(1, 10)), (0.1,) * 10


def test_the_same_questions_do_not_drift_and_others_do() -> None:
    rng = random.Random(0)
    drift = Drift(EDGES, EQUAL)
    for _ in range(99):
        drift.add(rng.random())
    assert drift.psi is None  # too few to say
    for _ in range(900):
        drift.add(rng.random())
    alike = drift.psi
    assert alike is not None
    assert alike < 0.1
    for _ in range(1000):
        drift.add(rng.random() ** 4)
    assert drift.psi > 0.25


def test_old_scores_are_forgotten() -> None:
    rng = random.Random(0)
    drift = Drift(EDGES, EQUAL)
    for _ in range(1000):
        drift.add(0.05)
    for _ in range(1000):
        drift.add(rng.random())
    assert drift.psi < 0.1


def test_without_a_calibration_there_is_nothing_to_compare_with() -> None:
    drift = Drift((), ())
    for _ in range(200):
        drift.add(0.5)
    assert drift.psi is None


def test_scores_that_are_often_alike_do_not_drift_by_themselves() -> None:
    drift = Drift((0.5,), (0.2, 0.8))
    for i in range(200):
        drift.add(0.1 if i % 5 == 0 else 0.5)
    assert drift.psi < 0.01
