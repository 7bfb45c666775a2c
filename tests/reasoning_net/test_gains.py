import pytest

from reasoning_net.gains import Asked, Gains


def asked(direct: float, explicit: float, *, chain: int = 100, ended: bool = True) -> Asked:
    return Asked(50, direct, 10, explicit, chain, ended, 12, 0.1, 1.0)


def test_what_is_saved_is_what_chains_cost_where_direct_is_as_good() -> None:
    sample = [asked(1, 1), asked(0, 0, chain=300), asked(0, 1), asked(0, 1, chain=500)]
    gains = Gains.of(sample)
    assert (gains.direct, gains.explicit, gains.as_good) == (0.25, 0.75, 0.5)
    assert gains.saving == pytest.approx((90 + 290) / 1000)
    said = " ".join(gains.sentences())
    assert "explicit 0.75 ± 0.22 with 250 tokens an answer, direct 0.25 ± 0.22 with 10." in said
    assert "would save 38% of the tokens at no loss" in said
    assert "up to 0.50 of accuracy" in said


def test_a_base_whose_chains_bring_nothing_is_told() -> None:
    said = " ".join(Gains.of([asked(1, 1), asked(1, 0)]).sentences())
    assert "Chains bring nothing" in said
    assert "save" not in said


def test_chains_that_were_cut_are_told() -> None:
    said = " ".join(Gains.of([asked(0, 1), asked(0, 0, ended=False)]).sentences())
    assert "Only 50% of the chains ended within the limit" in said
