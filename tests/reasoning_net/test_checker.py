"""Arithmetic as a reason: which steps are found, what a change of the question should bring."""

import time

from reasoning_net.checker import Arithmetic, Reading, described, equations, needed_changes, verified

QUESTION = "Ann has 5 pens. In January, she finds 3 pens. In February, she gives half of the pens away. How many pens?"
CHECKER = Arithmetic()


def test_steps_that_lead_to_the_answer() -> None:
    trace = CHECKER.trace([None, 8, 77, 4], QUESTION, 4)
    assert [(step.row, step.operation, step.value) for step in trace] == [(1, "5 + 3", 8), (3, "8 / 2", 4)]
    assert trace[1].left.step == 0, "the second step goes on from the first"


def test_half_of_four() -> None:
    assert [step.operation for step in CHECKER.trace([4, 2], QUESTION.replace("3 pens", "1 pen"), 2)] == ["5 - 1", "4 / 2"]


def test_no_trace_without_the_answer_or_without_a_way_to_it() -> None:
    assert CHECKER.trace([8, 7], QUESTION, 4) == ()
    assert CHECKER.trace([77], QUESTION, 77) == ()
    assert CHECKER.trace([5], QUESTION, 5) == (), "a number of the question is no step"


def test_what_the_answer_does_not_need_is_left_out() -> None:
    trace = CHECKER.trace([2, 8, 4], QUESTION, 4)
    assert [step.value for step in trace] == [8, 4]


def test_changes_come_to_what_the_steps_come_to() -> None:
    trace = CHECKER.trace([8, 4], QUESTION, 4)
    changes = list(CHECKER.changes(trace, QUESTION))
    assert {change.question.split(" pens")[0] for change in changes} == {"Ann has 5", "Ann has 7"}
    (by_five, *_) = [change for change in changes if "has 7" in change.question]
    assert by_five.values == (10, 5)
    assert not any(value for change in changes for value in change.values if value > 99)
    assert list(CHECKER.changes((), QUESTION)) == []


def test_each_step_is_tried_three_times_and_has_to_follow_twice() -> None:
    question = QUESTION.replace("5", "7")
    trace = CHECKER.trace([10, 5], question, 5)
    changes = needed_changes(trace, CHECKER.changes(trace, question))
    assert [change.values for change in changes][:2] == [(12, 6), (12, 6)], "9 pens and 3, or 7 and 5"
    assert 2 <= len(changes) <= 6
    assert len(needed_changes(trace, CHECKER.changes(trace, question), most=1)) == 1
    follows = [change.values for change in changes]
    assert verified(trace, changes, follows) == [True, True]
    assert verified(trace, changes, [(first, 5) for first, _ in follows]) == [True, False]
    assert verified(trace, changes[:1], follows[:1]) == [False, False], "once is chance"


def test_what_a_user_reads() -> None:
    reading = Reading([8, 77, 4], [0.9, 0.2, 0.75])
    trace = CHECKER.trace(reading.values, QUESTION, 4)
    rows = described(reading, trace, None)
    assert [(row["latent"], row["value"], row["operation"]) for row in rows] == [
        (1, 8, "5 + 3"),
        (2, 77, None),
        (3, 4, "8 / 2"),
    ]
    assert all(row["verified"] is None for row in rows)
    assert [row["verified"] for row in described(reading, trace, [True, False])] == [True, None, False]
    assert (reading.decodability(4), reading.decodability(5)) == (0.75, 0.0)


def test_a_long_question_costs_no_more_than_a_short_one() -> None:
    question, values = " ".join(str(number % 41) for number in range(5000)) + "9" * 5000, list(range(16, 32))
    started = time.perf_counter()
    CHECKER.trace(values, question, 31)
    assert time.perf_counter() - started < 0.1


def test_equations_of_a_chain() -> None:
    text = "5 + 3 = 8. Wait, that is wrong. 8 / 2 = 5. 8 / 2 = 4. pens 3: 2 x 3 = 6. 3 x 4 = 11"
    assert equations(text) == [("5 + 3", 8), ("8 / 2", 4), ("2 * 3", 6)]
