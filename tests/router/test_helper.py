"""Which steps of a chain a helper writes."""

import random

import pytest

from router.helper import Glimpses, HelpRule, tokens_of_help


def wanted(rule: HelpRule, entropy: float = 0.0, beginning: str = "Ann", helped: list[bool] | None = None) -> int:
    return tokens_of_help(rule, entropy, beginning, Glimpses(), helped or [], random.Random(0))


def test_a_request_gets_no_more_than_the_operator_grants() -> None:
    rule = HelpRule(share=1.0, max_tokens=10**6, policy="random").within(HelpRule(share=0.3))
    assert (rule.share, rule.max_tokens, rule.policy) == (0.3, 4096, "random")
    assert HelpRule(share=0.1).within(HelpRule(share=0.3)).share == 0.1


def test_a_glimpse_above_the_threshold_asks_for_a_step() -> None:
    rule = HelpRule(share=1.0)
    assert wanted(rule, 1.2) == rule.step_tokens
    assert wanted(rule, 0.8) == 0, "GlimpRouter's 1.0, until enough was seen"
    assert wanted(HelpRule(share=1.0, threshold=0.5), 0.8) > 0


def test_the_threshold_is_that_of_the_share_asked_for() -> None:
    glimpses = Glimpses()
    for step in range(100):
        glimpses.add(step / 100)
    assert glimpses.threshold(0.2) == pytest.approx(0.8)
    assert glimpses.threshold(0.0) == pytest.approx(0.99), "nothing lies above the largest"
    assert glimpses.threshold(1.0) == 0


def test_never_more_than_a_step_above_the_share() -> None:
    rule = HelpRule(policy="random", share=0.5)
    helped: list[bool] = []
    chance = random.Random(1)
    for _ in range(200):
        helped.append(tokens_of_help(rule, 0.0, "", Glimpses(), helped, chance) > 0)
        assert sum(helped) <= 0.5 * len(helped) + 1
    assert sum(helped) / len(helped) > 0.4


@pytest.mark.parametrize(("beginning", "tokens"), [("Wait, that", 20), ("Let me check it", 125), ("Now Ann has", 0)])
def test_words_of_doubt_and_of_checking_ask_for_help(beginning: str, tokens: int) -> None:
    assert wanted(HelpRule(policy="reflect", share=1.0), beginning=beginning) == tokens
