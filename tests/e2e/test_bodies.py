"""Bodies at and around what the protocols allow, in every mode: each is answered, or refused with a reason, in its own shape.

EXAMPLES says how many are drawn for each protocol: `make fuzz`.
"""

import os
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from reasoning_net.demo.questions import Question
from router.policy import Mode

EXAMPLES = int(os.environ.get("EXAMPLES", "30"))
ODD = st.sampled_from([None, -1, 0, 2**31, 2**63, 1e308, "", "a", "\u0000", [], {}, True, 0.5])
NEAR = {
    "temperature": st.floats(0, 2) | st.sampled_from([-0.1, 2.1, 1e-9]),
    "top_p": st.floats(0.01, 1) | st.sampled_from([0, 1.1]),
    "top_k": st.integers(-1, 50) | st.sampled_from([-2, 10**6]),
    "min_p": st.floats(0, 1) | st.just(1.1),
    "n": st.integers(0, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=5),
    "presence_penalty": st.floats(-2.1, 2.1),
    "repetition_penalty": st.floats(0.0, 2.0),
    "logit_bias": st.dictionaries(st.integers(-1, 1100).map(str), st.floats(-101, 101), max_size=3),
    "logprobs": st.booleans() | st.integers(-1, 21),
    "top_logprobs": st.integers(-1, 21),
    "min_tokens": st.integers(-1, 12),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "num_latent_tokens": st.integers(0, 257) | st.just("auto"),
    "thinking_token_budget": st.integers(-2, 40),
    "timeout_seconds": st.floats(-1, 700),
    "explain": st.booleans(),
    "router": st.fixed_dictionaries({}, optional={
        "policy": st.sampled_from(["utility", "always-explicit", "diffadapt", "nothing"]), "max_cost": st.integers(-1, 300),
        "explicit_share": st.floats(-0.1, 1.1),
    }),
    "response_format": st.sampled_from([
        {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "xml"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
    ]),
    "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "most"]),
    "cache_salt": st.text(max_size=4),
    "priority": st.integers(-3, 3),
    "echo": st.booleans(),
    "prompt_logprobs": st.integers(-1, 21),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "x"]), st.booleans(), max_size=1),
    "metadata": st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
}  # fmt: skip
"""Values of fields, of which some are just outside of what is allowed."""
FIELDS = st.dictionaries(st.sampled_from(sorted(NEAR)), st.none(), max_size=5).flatmap(
    lambda names: st.fixed_dictionaries({name: NEAR[name] | ODD if len(names) < 3 else NEAR[name] for name in names})
)
MODES = st.sampled_from([*Mode, "fast", None])


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/route", "/v1/explain"]
)
def test_every_body_is_answered_or_refused_with_a_reason(server: str, asked: list[Question], path: str) -> None:
    question, codes = asked[0].question, Counter[int]()
    prompt: dict[str, Any] = {
        "/v1/completions": {"prompt": question}, "/v1/responses": {"input": question, "max_output_tokens": 12},
    }.get(path, {"messages": [{"role": "user", "content": question}]})  # fmt: skip

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 100, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(fields=FIELDS, mode=MODES)
    def check(fields: dict[str, Any], mode: str | None) -> None:
        body = {"model": "demo", "max_tokens": 12} | prompt | fields | ({"mode": mode} if mode else {})
        response = http.post(path, json=body)
        codes[response.status_code] += 1
        assert response.status_code in (200, 400, 501, *([504] if "timeout_seconds" in body else [])), response.text[:500]
        if response.status_code != 200:
            assert response.json()["error"]["message"], response.text
        elif body.get("stream") is True and path not in ("/v1/route", "/v1/explain"):
            assert response.text.rstrip().rpartition("data: ")[2].startswith(("[DONE]", "{")), response.text[-200:]
        else:
            assert isinstance(response.json(), dict)

    with httpx.Client(base_url=server, timeout=120) as http:
        check()
    assert codes[200], codes
    assert codes[400], codes
    print(path, dict(codes))
