import asyncio
import math

import pytest

from reasoning_net.bundle import Bundle
from router.policy import Decision, Mode, Scores
from server.http.errors import DeadlineError
from server.observe.record import Ask, Record
from server.observe.workload import Workload, known_tokens

KNOWN = {"direct": 6.0, "latent": 8.0, "explicit": 200.0, "auto": 50.0}


def decided(mode: Mode, budget: int | None = None, tokens: float | None = None) -> Record:
    record = Record(Ask("auto"), scores=Scores(tokens=tokens), most_tokens=1000)
    record.decided(Decision(mode, None, None, "worth_it", thinking_budget=budget))
    return record


def test_what_waits_counts_by_the_mode_it_asked_for_within_what_it_may_have() -> None:
    work = Workload(KNOWN)
    with work.holding(Record(Ask("explicit"))), work.holding(Record(Ask("auto"), answers=3)):
        assert work.tokens == 200 + 3 * 50
        with (
            work.holding(Record(Ask("explicit"), most_tokens=20, answers=2)),
            work.holding(Record(Ask("auto", only_route=True))),
        ):
            assert work.tokens == 350 + 2 * 20
    assert work.tokens == 0


@pytest.mark.parametrize(
    ("record", "tokens"),
    [
        (decided(Mode.LATENT, tokens=300.0), 8.0),
        (decided(Mode.EXPLICIT, tokens=300.0), 300.0),
        (decided(Mode.EXPLICIT, tokens=math.nan), 200.0),
        (decided(Mode.EXPLICIT), 200.0),
        (decided(Mode.EXPLICIT, budget=40, tokens=300.0), 46.0),
        (decided(Mode.EXPLICIT, tokens=3000.0), 1000.0),
    ],
)
def test_what_is_decided_counts_by_what_the_probe_expects_and_the_budgets_allow(record: Record, tokens: float) -> None:
    work = Workload(KNOWN)
    with work.holding(record):
        assert work.tokens == pytest.approx(tokens)


def test_it_falls_with_what_is_generated_and_is_never_negative() -> None:
    work, record, seen = Workload(KNOWN), decided(Mode.EXPLICIT, tokens=100.0), []
    with work.holding(record):
        for _ in range(60):
            record.generated([5] * 20, end_of_thinking=None, is_first_choice=True)
            seen.append(work.tokens)
    assert seen[:4] == [80, 60, 40, 20]
    assert 0 < seen[9] < 100, "what is longer than expected goes on for a while"
    assert seen[-1] == 0, "all of its 1,000 tokens are there"


def test_answers_that_come_as_a_whole_fall_too() -> None:
    work, record = Workload(KNOWN, unseen={"pass": 150}.__getitem__), decided(Mode.EXPLICIT, tokens=200.0)
    record.pass_id = "pass"
    with work.holding(record):
        assert work.tokens == 50
        record.escalate(Decision(Mode.EXPLICIT, None, None, "answer_doubtful"))
        assert work.tokens == 200


@pytest.mark.parametrize("error", [RuntimeError("engine"), asyncio.CancelledError(), DeadlineError("late"), GeneratorExit()])
def test_whatever_ends_a_request_takes_it_off(error: BaseException) -> None:
    work, record = Workload(KNOWN), decided(Mode.EXPLICIT, tokens=100.0)
    with pytest.raises(type(error)), work.holding(record):  # noqa: PT012
        record.generated([5] * 7, end_of_thinking=None, is_first_choice=True)
        raise error
    assert work.tokens == 0


def test_means_follow_answers_and_not_what_was_cut_short() -> None:
    work = Workload({})

    def expected() -> float:
        with work.holding(Record(Ask("explicit"))):
            return work.tokens

    def answer(tokens: int, failure: str | None = None) -> None:
        record = Record(Ask("explicit"), generated_tokens=tokens, failure=failure)
        with work.holding(record):
            record.ended = record.started + 1

    unknown = expected()
    assert unknown > 0
    answer(3, failure="client_left")
    assert expected() == unknown
    answer(80)
    answer(100)
    assert expected() == 90
    for _ in range(200):
        answer(40)
    assert expected() == pytest.approx(40, abs=1)


def test_where_nothing_is_known_nothing_is_said() -> None:
    work, record = Workload({"latent": 6.0}), Record(Ask("explicit"))
    assert work.expected(record) is None
    assert work.expected(Record(Ask("latent", only_route=True), answers=2)) == 12
    with work.holding(record):
        assert work.tokens > 0


def test_a_calibration_says_what_answers_come_to(bundle: Bundle) -> None:
    known = known_tokens(bundle.manifest.calibration)
    assert known["direct"] < 20 < known["auto"] < known["explicit"]
    assert known_tokens(None) == {}
