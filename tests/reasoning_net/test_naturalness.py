import pytest
import torch

from reasoning_net.boundaries import Boundaries
from reasoning_net.frozen import FrozenBase
from reasoning_net.naturalness import ChainScore, best, confounding, correlation, figures, scores


def test_the_first_token_of_each_step_is_told_from_the_rest(base: FrozenBase) -> None:
    ids = base.tokenizer.encode("Mia has 3.\nSo 4.", add_special_tokens=False)
    texts = [base.tokenizer.decode([token]) for token in ids]
    first = [0, texts.index("\n") + 1]
    log_probs = [-4.0 if at in first else -1.0 for at in range(len(ids))]
    score = ChainScore.of(ids, log_probs, Boundaries(base.tokenizer))
    assert (score.first, score.drop) == (-4.0, -1.0)
    assert score.density == pytest.approx(2 / len(ids))
    assert score.mean == pytest.approx(-1 - 3 * 2 / len(ids))


def test_an_empty_chain_has_a_score(base: FrozenBase) -> None:
    assert ChainScore.of([], [], Boundaries(base.tokenizer)).density == 0


def chain(first: float, drop: float, density: float) -> ChainScore:
    return ChainScore(density * first + (1 - density) * drop, first, drop, density)


def test_dropping_first_tokens_takes_the_bias_for_long_steps_away() -> None:
    """Two chains whose tokens are as likely; one has steps four times as long."""
    short, long = chain(-4.0, -1.0, 0.2), chain(-4.0, -1.0, 0.05)
    assert scores([short, long], "mean")[1] > scores([short, long], "mean")[0]
    assert scores([short, long], "aslec-drop") == [-1.0, -1.0]


def test_a_regression_takes_out_what_the_density_explains() -> None:
    """Where the mean is made of the columns, γ is found, and what is left is the rest."""
    torch.manual_seed(0)
    drawn = torch.rand(40, 3, dtype=torch.float64).tolist()
    chains = [ChainScore(0.3 * first + 0.7 * drop - 2.0 * density, first, drop, density) for first, drop, density in drawn]
    assert confounding(chains) == pytest.approx(-2.0)
    expected = [0.3 * one.first + 0.7 * one.drop for one in chains]
    assert scores(chains, "aslec-casl") == pytest.approx(expected)


def test_scores_follow_step_length_until_they_are_corrected() -> None:
    torch.manual_seed(0)
    chains = [chain(-3.0, -1.0 + 0.01 * torch.randn(()).item(), density) for density in torch.linspace(0.05, 0.3, 50).tolist()]
    found = figures([chains])
    assert found["step length and mean"] > 0.8
    assert abs(found["step length and aslec-drop"]) < 0.3
    assert correlation([1.0], chains[:1]) == 0


def test_right_answers_come_first() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])
    assert best(values, [False, True, True]) == 1
    assert best(values, [False, False, False]) == 0
