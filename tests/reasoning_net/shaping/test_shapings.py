"""What is named on the command line."""

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.shaping import REFUSED, SHAPINGS, Shapings
from tests.reasoning_net.shaping import tokens_of


@pytest.mark.parametrize("name", SHAPINGS)
def test_no_shaping_gives_weight_to_what_is_no_token(name: str) -> None:
    tokens = tokens_of(
        log_probs=[[-0.1, -1.0, -2.0], [-0.2, -0.9, -3.0]], entropy=[[0.2, 0.9, 2.0], [0.3, 0.8, 3.0]],
        advantages=[1.0, -1.0], divergence=[[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], written=[2, 3],
    )  # fmt: skip
    weights = Shapings.named([name]).weights(tokens, 0.5)
    assert weights[0, 2] == 0
    assert bool((weights >= 0).all())
    assert float(weights.sum()) > 0


def test_several_shapings_multiply() -> None:
    tokens = tokens_of(log_probs=[[-0.7, -0.7]], entropy=[[1.0, 0.5]])
    both, one, other = (Shapings.named(names).weights(tokens, 0.0) for names in (["steer", "8020"], ["steer"], ["8020"]))
    torch.testing.assert_close(both, one * other)
    assert torch.equal(Shapings().weights(tokens, 0.0), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("clip-cov", "one or none"),
        ("kl-cov", "--inner-steps 1"),
        ("cure", "--rollouts"),
        ("hicra", "planning"),
        ("rmt", "raw text"),
        ("pear", "train pear"),
        ("ares", "the base is frozen"),
        ("aepo", "the base is frozen"),
        ("tea-rl", "formulas"),
    ],
)
def test_what_does_not_apply_is_refused_with_its_reason(name: str, reason: str) -> None:
    assert name in REFUSED
    with pytest.raises(StageError, match=f"{name} is not applicable: it .*{reason}"):
        Shapings.named([name])


def test_every_refusal_is_known_to_this_test() -> None:
    assert len(REFUSED) == 9
    assert not set(REFUSED) & set(SHAPINGS)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["luck"], "no shaping luck. There are: seed"),
        (["seed:2"], "a number above 0, and 1 at most"),
        (["8020:few"], "a number above 0"),
        (["tw:0.5"], "takes no setting"),
        (["empo", "spine"], "both make rewards"),
    ],
)
def test_bad_names_say_what_to_do(names: list[str], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        Shapings.named(names)
