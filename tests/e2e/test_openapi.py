"""The OpenAPI document, as schemathesis reads it: whatever it says may be sent is answered, or refused with a reason."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance

schema = schemathesis.pytest.from_fixture("api")


@pytest.fixture(scope="module")
def api(server: str) -> schemathesis.schemas.BaseSchema:
    document = httpx.get(f"{server}/openapi.json", timeout=60).json()
    return schemathesis.openapi.from_dict(document).configure(base_url=server) if False else schemathesis.openapi.from_url(f"{server}/openapi.json")


@schema.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
def test_no_request_that_the_document_allows_is_a_server_error(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict) and "messages" in case.body or isinstance(case.body, dict) and "prompt" in case.body:
        case.body["max_tokens"] = 4
    response = case.call(timeout=60)
    case.validate_response(response, checks=[not_a_server_error, content_type_conformance])
