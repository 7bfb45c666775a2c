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
