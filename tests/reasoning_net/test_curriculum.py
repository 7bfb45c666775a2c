import random

from reasoning_net.curriculum import Curriculum


def test_curriculum_opens_levels_one_by_one() -> None:
    curriculum = Curriculum(levels=3, start=1, threshold=0.5)
    for _ in range(100):
        curriculum.update([1, 0], [0.1, 9.0])
    assert curriculum.open == 2
    for _ in range(100):
        curriculum.update([1, 2], [0.1, 2.0])
    assert curriculum.open == 2
    for _ in range(100):
        curriculum.update([2, 3], [0.1, 0.1])
    assert curriculum.open == 3


def test_once_all_are_open_harder_ones_come_oftener() -> None:
    curriculum, rng = Curriculum(levels=4, start=4, threshold=0.5), random.Random(0)
    drawn = [curriculum.draw(rng) for _ in range(2000)]
    shares = [drawn.count(level) / 2000 for level in (1, 2, 3, 4)]
    assert shares == sorted(shares)
    assert shares[0] > 0.03
