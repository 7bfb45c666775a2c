"""What is told of latents, and what is written down."""

from reasoning_net.checker import Arithmetic, Reading
from router.policy import Decision, Mode
from server.observe.explanation import Explanation
from server.observe.record import Ask, Record

QUESTION = "Ann has 5 pens. In January, she finds 3 pens. How many pens does Ann have now?"
READING = Reading([77, 8], [0.25, 0.75])


def explanation(answer: int | None, verified: list[bool] | None = None) -> Explanation:
    trace = Arithmetic().trace(READING.values, QUESTION, answer) if answer is not None else ()
    return Explanation(READING, answer, trace, verified)


def test_a_reason_holds_where_all_of_it_was_put_to_the_test_and_followed() -> None:
    assert explanation(8).is_verified is None, "there is a step, and nobody tried it"
    assert explanation(8, [True]).is_verified is True
    assert explanation(8, [False]).is_verified is False
    assert explanation(9).is_verified is False, "there is nothing to try"
    assert [row["operation"] for row in explanation(8).rows] == [None, "5 + 3"]
    assert (explanation(8).decodability, explanation(9).decodability, explanation(None).decodability) == (0.75, 0.0, None)


def test_the_route_tells_it_who_asked_and_no_log() -> None:
    record = Record(Ask("latent", explains=True), decision=Decision(Mode.LATENT, None, None, "requested"))
    assert (record.public()["trace"], record.public()["decodability"]) == (None, None), "before there is an answer"
    record.explanation, record.ended = explanation(8), record.started
    assert record.public()["trace"] == explanation(8).rows
    assert record.public()["decodability"] == 0.75
    assert "trace" not in record.line()
    record.escalate(Decision(Mode.EXPLICIT, None, None, "answer_doubtful"))
    assert record.public()["trace"] is None, "another answer was given"
    assert "trace" not in Record(Ask("latent")).public()
