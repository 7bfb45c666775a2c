"""The mode of a request: precedence, contradictions, refusals."""

from typing import Any

import pytest

from router.policy import Mode
from server.chat import refuse_unsupported, take_mode
from server.errors import BadRequestError


@pytest.mark.parametrize(
    ("body", "header", "named", "implied"),
    [
        ({}, None, None, None),
        ({"mode": "latent"}, "explicit", Mode.LATENT, None),
        ({"mode": "direct", "model": "demo:explicit"}, None, Mode.DIRECT, None),
        ({"model": "demo:explicit"}, "latent", Mode.EXPLICIT, None),
        ({"model": "demo"}, "latent", Mode.LATENT, None),
        ({"model": "org/name:tag"}, None, None, None),
        ({"reasoning_effort": "none"}, None, None, Mode.DIRECT),
        ({"reasoning_effort": "minimal"}, None, None, Mode.LATENT),
        ({"reasoning_effort": "low"}, None, None, Mode.LATENT),
        ({"reasoning_effort": "medium"}, None, None, Mode.AUTO),
        ({"reasoning_effort": "high"}, None, None, Mode.EXPLICIT),
        ({"reasoning": {"effort": "high"}}, None, None, Mode.EXPLICIT),
        ({"reasoning_effort": "high", "mode": "latent"}, None, Mode.LATENT, Mode.EXPLICIT),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None, None, Mode.DIRECT),
        ({"chat_template_kwargs": {"enable_thinking": True}}, None, None, Mode.EXPLICIT),
        ({"thinking": {"type": "disabled"}}, None, None, Mode.DIRECT),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, None, None, Mode.EXPLICIT),
    ],
)
def test_precedence(body: dict[str, Any], header: str | None, named: Mode | None, implied: Mode | None) -> None:
    assert take_mode(body, header) == (named, implied)


def test_what_would_change_the_prompt_is_taken_out() -> None:
    body = {"mode": "latent", "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True, "x": 1}}
    take_mode(body, None)
    assert body == {"chat_template_kwargs": {"x": 1}}


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "explicit", "reasoning_effort": "none"},
        {"mode": "direct", "reasoning_effort": "high"},
        {"mode": "explicit", "chat_template_kwargs": {"enable_thinking": False}},
        {"mode": "fast"},
        {"mode": 3},
        {"reasoning_effort": "enormous"},
    ],
)
def test_contradictions_and_unknown_values(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        take_mode(body, None)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_embeds": "AAAA"},
        {"chat_template": "{{ messages }}"},
        {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "prompt_embeds": "AAAA"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "prompt_embeds": "AAAA"}]}]},
    ],
)
def test_refusals(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        refuse_unsupported(body)


def test_ordinary_content_is_not_refused() -> None:
    refuse_unsupported(
        {
            "messages": [
                {"role": "user", "content": "prompt_embeds"},
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
            ]
        }
    )
