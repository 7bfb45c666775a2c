"""What a request may say of thinking in mixtures."""

import pytest
from pydantic import ValidationError

from router.soft import SoftThinking


@pytest.mark.parametrize(
    "fields", [{"k": 0}, {"k": 21}, {"temperature": 0}, {"noise": "white"}, {"switch": "lead", "noise": "gumbel"}, {"q": 1}]
)
def test_what_cannot_be_mixed_is_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        SoftThinking(**fields)


def test_only_a_switch_or_cold_steps_end_thinking() -> None:
    assert not SoftThinking().ends_thinking
    assert SoftThinking(switch="lead").ends_thinking
    assert SoftThinking(cold_steps=256).ends_thinking
