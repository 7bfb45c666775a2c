"""What latents say, for requests that ask: a whole number a row, and whether steps of arithmetic lead over these to the answer.

The worker reads the rows when it has computed them (`Reader`). That comes while the answer is written, so only the search for
steps takes time of its own. To verify means to read again, with a number of the question changed. Whatever protocol a request
came by, its question is what its tokens say.
"""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reasoning_net.checker import Arithmetic, Checker, Reading, needed_changes, verified
from server.engine.shadow import answer_of
from server.observe.explanation import Explanation

if TYPE_CHECKING:
    from server.engine.passes import Passes

_CHECKER: Checker = Arithmetic()
_QUESTION_TOKENS = 512  # from the prompt's end: where the numbers of a question are
_MOST_CHANGES = 24  # engine requests of a verification
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Said:
    """By the latents of a question, as the worker read them."""

    values: list[int]
    probabilities: list[float]
    seconds: float


async def explain(run: "Passes") -> None:
    """The answer that was written, by what its latents say: into the record."""
    assert run.said is not None, "asked where latents were to be read"
    if (said := await run.said) is None:
        return
    started, record = time.perf_counter(), run.record
    number = record.latent_tokens  # the answer may have got fewer than were computed
    reading, answer = Reading(said.values[:number], said.probabilities[:number]), _answer(run)
    trace = _CHECKER.trace(reading.values, _text(run), answer) if answer is not None else ()
    record.explanation = Explanation(reading, answer, trace)
    if run.ask.verifies and trace:
        record.explanation = replace(record.explanation, verified=await _verify(run, record.explanation))
    record.stages["trace"] = said.seconds + time.perf_counter() - started


async def _verify(run: "Passes", explanation: Explanation) -> list[bool] | None:
    """One changed question after the other, as one answer is written. None where the tokens of a question are not those of its
    text: nothing is known of a changed text then."""
    text, trace, head = _text(run), explanation.trace, run.question.token_ids[:-_QUESTION_TOKENS]
    if [*head, *_encode(run, text)] != run.question.token_ids:
        return None
    changes = needed_changes(trace, _CHECKER.changes(trace, text), _MOST_CHANGES)
    readings = [await run.read_changed([*head, *_encode(run, change.question)]) for change in changes]
    return verified(trace, changes, [said.values for said in readings if said]) if all(readings) else None


def _text(run: "Passes") -> str:
    return str(run.engine.get_tokenizer().decode(run.question.token_ids[-_QUESTION_TOKENS:]))


def _encode(run: "Passes", text: str) -> list[int]:
    return list(run.engine.get_tokenizer().encode(text, add_special_tokens=False))


def _answer(run: "Passes") -> int | None:
    """The whole number that the answer ends with."""
    text = answer_of(run.engine.get_tokenizer().decode(run.engine.hybrid.after_chain(run.token_ids), skip_special_tokens=True))
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
