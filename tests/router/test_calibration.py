import pytest
from pydantic import ValidationError

from router.calibration import Confidence, Point, Target, choose
from router.policy import RouterError


def points(*, timed: bool = False) -> list[Point]:
    return [
        Point(
            price=price, accuracy=accuracy, explicit_share=share, mean_tokens=200 * share + 6,
            p95_seconds=share * 10 if timed else None,
        )
        for price, share, accuracy in ((0.0, 0.8, 0.99), (0.001, 0.4, 0.985), (0.002, 0.2, 0.95), (0.01, 0.0, 0.86))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "share"),
    [
        (Target(explicit_share=0.25), 0.2),
        (Target(accuracy_floor=0.96), 0.4),
        (Target(accuracy_floor=0.0), 0.0),
        (Target(accuracy_loss=0.005), 0.4),
        (Target(accuracy_loss=0.004), 0.8),
        (Target(mean_tokens=100), 0.4),
        (Target(p95_seconds=2.5), 0.2),
    ],
)
def test_a_target_finds_its_point(target: Target, share: float) -> None:
    assert choose(points(timed=True), target).explicit_share == share


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (Target(accuracy_floor=0.995), "reaches 0.99"),
        (Target(mean_tokens=2), "cheapest setting needs 6.0"),
        (Target(p95_seconds=2), "--url"),
    ],
)
def test_an_impossible_target_says_what_is_possible(target: Target, says: str) -> None:
    with pytest.raises(RouterError, match=says):
        choose(points(), target)


def test_a_target_is_one_thing() -> None:
    for fields in ({}, {"explicit_share": 0.3, "mean_tokens": 50}):
        with pytest.raises(ValidationError, match="exactly one"):
            Target.model_validate(fields)
    dumped = Target(explicit_share=0.3).model_dump()
    assert Target.model_validate(dumped).explicit_share == 0.3


def test_confidence_moves_the_prior() -> None:
    confidence = Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0)
    assert confidence.posterior(0.5, 0.5) == pytest.approx(0.5)
    assert confidence.posterior(0.9, 0.99) > 0.98
    assert confidence.posterior(0.9, 0.2) < 0.5
    assert 0 <= confidence.posterior(0.0, 0.0) < confidence.posterior(1.0, 1.0) <= 1
