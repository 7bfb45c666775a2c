"""The OpenAPI document, as schemathesis reads it: whatever it says may be sent is answered, or refused with a reason.

EXAMPLES says how many requests are drawn for each operation: `make fuzz`.
"""

import os
from collections import Counter

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


def test_no_request_that_the_document_allows_is_a_server_error(server: str) -> None:
    asked = []
    for result in schemathesis.openapi.from_url(f"{server}/openapi.json").get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 100, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and {"messages", "prompt", "input"} & set(case.body):
                case.body |= {"model": "demo", "max_tokens": 4, "max_output_tokens": 4, "timeout_seconds": 60}
            response = case.call(timeout=60)
            asked.append(response.status_code)
            case.validate_response(response, checks=CHECKS)

        check()
    print(f"{len(asked)} requests: {dict(sorted(Counter(asked).items()))}")
    assert 200 in asked
