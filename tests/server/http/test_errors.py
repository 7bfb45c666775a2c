import json

import pytest

from server.http.errors import DeadlineError, OverloadedError


@pytest.mark.parametrize(
    ("path", "begins", "message"),
    [
        ("/v1/chat/completions", "data: {", lambda data: data["error"]["message"]),
        ("/v1/completions", "data: {", lambda data: data["error"]["message"]),
        ("/v1/messages", "event: error\ndata: {", lambda data: data["error"]["message"]),
        ("/v1/responses", "event: error\ndata: {", lambda data: data["message"]),
    ],
)
def test_the_last_event_of_a_stream_has_the_shape_of_its_protocol(path: str, begins: str, message: object) -> None:
    event = DeadlineError("Too late.").event(path).decode()
    assert event.startswith(begins)
    first = event.partition("data: ")[2].partition("\n")[0]
    assert message(json.loads(first)) == "Too late."
    assert event.endswith("\n\n")


def test_what_may_be_tried_again_says_when_and_why() -> None:
    response = OverloadedError("Full.", "queue_full", 7).response()
    assert (response.status_code, response.headers["retry-after"], response.headers["x-reject-reason"]) == (
        429,
        "7",
        "queue_full",
    )
