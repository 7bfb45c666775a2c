"""Whether numbers that were read off latents are a reason for an answer: steps of arithmetic that lead to it.

After "Are latent reasoning models easily interpretable?" (2604.04902), forwards and without a known chain: a result is the
likeliest number of a row; its operands are numbers of the question, earlier results, or what earlier rows say.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

_NUMBER = re.compile(r"[0-9]+")
_EQUATION = re.compile(r"(\d+) ?([-+*x×/÷]) ?(\d+) ?= ?(\d+)")
_SIGNS = {"x": "*", "×": "*", "÷": "/"}
_CHANGES = (1, -1, 2)
_TRIED, _NEEDED = 3, 2  # changes that a step is put to the test by, and those that it must follow
_LARGEST = 99
_MOST_NUMBERS, _MOST_DIGITS = 24, 9  # of a question, from its end: a long prompt has thousands of pairs


@dataclass(frozen=True, slots=True)
class Reading:
    """The likeliest whole number of each row, and its probability among whole numbers."""

    values: Sequence[int]
    probabilities: Sequence[float]

    def decodability(self, answer: int) -> float:
        """The probability of the answer in the row that says it most clearly; 0 where none does. A confidence in the answer:
        2604.04902 reads reasons off right answers more often than off wrong ones."""
        return max((p for value, p in zip(self.values, self.probabilities, strict=True) if value == answer), default=0.0)


@dataclass(frozen=True, slots=True)
class Operand:
    """One number of a step, and where it comes from."""

    value: int
    place: int | None = None
    """Which number of the question it is, from 0."""
    step: int | None = None
    """Which step of the trace has it as its result, from 0; without both it is a constant: to double, to halve."""


@dataclass(frozen=True, slots=True)
class Step:
    """left op right = value, read off a row."""

    row: int
    left: Operand
    op: str
    right: Operand
    value: int

    @property
    def operation(self) -> str:
        return f"{self.left.value} {self.op} {self.right.value}"


Trace = tuple[Step, ...]
"""Steps in order; the last one's value is the answer."""


@dataclass(frozen=True, slots=True)
class Change:
    """A question in which one number is another one, and what each step should come to."""

    question: str
    values: tuple[int, ...]


class Checker(Protocol):
    """The part that depends on what questions are about."""

    def trace(self, values: Sequence[int | None], question: str, answer: int) -> Trace:
        """Steps that explain the answer from what rows say; empty where there are none."""
        ...

    def changes(self, trace: Trace, question: str) -> Iterator[Change]:
        """Questions by which a trace can be put to the test."""
        ...


class Arithmetic:
    """Whole numbers, four operations, and doubling and halving."""

    def trace(self, values: Sequence[int | None], question: str, answer: int) -> Trace:
        ways, steps = _Ways(_numbers(question)), list[Step]()
        for row, value in enumerate(values):
            if value is None or any(step.value == value for step in steps):
                continue
            if (way := ways.to(value)) is not None:
                ways.add(Operand(value, step=len(steps)))
                steps.append(Step(row, *way, value))
        ends = [index for index, step in enumerate(steps) if step.value == answer]
        return _leading_to(steps, ends[-1]) if ends else ()

    def changes(self, trace: Trace, question: str) -> Iterator[Change]:
        places = dict.fromkeys(o.place for step in trace for o in (step.left, step.right) if o.place is not None)
        numbers = list(_NUMBER.finditer(question))
        for place, by in itertools.product(places, _CHANGES):
            changed = int(numbers[place].group()) + by
            values = recomputed(trace, place, changed)
            if values is not None and changed > 0:
                start, end = numbers[place].span()
                yield Change(f"{question[:start]}{changed}{question[end:]}", values)


_TWO = Operand(2)
_Way = tuple[Operand, str, Operand]


class _Ways:
    """How a value can be come to: from the last results on, with a number of the question rather than another result."""

    def __init__(self, given: Sequence[Operand]) -> None:
        halves = ((one, _TWO) for one in given)
        self._given, self._results = given, list[Operand]()
        self._of_given = _ways(itertools.chain(itertools.permutations(given, 2), halves))
        self._from_results, self._of_results = dict[int, _Way](), dict[int, _Way]()

    def to(self, value: int) -> _Way | None:
        return next((ways[value] for ways in (self._from_results, self._of_given, self._of_results) if value in ways), None)

    def add(self, result: Operand) -> None:
        """A result that later ones may go on from; its ways come before those of earlier ones."""
        self._from_results |= _ways((result, other) for other in (*self._given, _TWO))
        pairs = [(result, other) for other in reversed(self._results)]
        self._of_results |= _ways([*pairs, *((other, one) for one, other in pairs)])
        self._results.append(result)


def _ways(pairs: Iterable[tuple[Operand, Operand]]) -> dict[int, _Way]:
    """By value: the first way to come to it."""
    found: dict[int, _Way] = {}
    for left, right in pairs:
        for op in "*/" if right is _TWO else "+-*/":
            value = _apply(left.value, op, right.value)
            changes_nothing = value == left.value or (op in "+*" and value == right.value)
            if value is not None and not changes_nothing:
                found.setdefault(value, (left, op, right))
    return found


def _numbers(question: str) -> list[Operand]:
    """The last whole numbers of a text, by their places among all of it."""
    found = [(place, text) for place, text in enumerate(_NUMBER.findall(question)) if len(text) <= _MOST_DIGITS]
    return [Operand(int(text), place=place) for place, text in found[-_MOST_NUMBERS:]]


def _apply(left: int, op: str, right: int) -> int | None:
    """None where it is no whole number, or one that is out of reach."""
    if op == "/":
        return left // right if right and left % right == 0 else None
    value = left + right if op == "+" else left - right if op == "-" else left * right
    return value if 0 <= value <= _LARGEST else None


def _leading_to(steps: Sequence[Step], end: int) -> Trace:
    """The step, and all whose results it needs, numbered anew."""
    needed = {end}
    for index in range(end, -1, -1):
        if index in needed:
            needed |= {o.step for o in (steps[index].left, steps[index].right) if o.step is not None}
    number = {index: place for place, index in enumerate(sorted(needed))}

    def moved(operand: Operand) -> Operand:
        return operand if operand.step is None else replace(operand, step=number[operand.step])

    return tuple(replace(steps[i], left=moved(steps[i].left), right=moved(steps[i].right)) for i in sorted(needed))


def recomputed(trace: Trace, place: int, number: int) -> tuple[int, ...] | None:
    """What the steps come to where a number of the question is another one; None where that cannot be."""
    values: list[int] = []
    for step in trace:
        left, right = (
            number if o.place == place else values[o.step] if o.step is not None else o.value for o in (step.left, step.right)
        )
        if (value := _apply(left, step.op, right)) is None:
            return None
        values.append(value)
    return tuple(values)


def needed_changes(trace: Trace, changes: Iterable[Change], most: int | None = None) -> list[Change]:
    """Of all changes those that put some step to the test; at most so many."""
    left, needed = [_TRIED] * len(trace), list[Change]()
    for change in changes:
        tested = [index for index, step in enumerate(trace) if change.values[index] != step.value and left[index]]
        if tested and (most is None or len(needed) < most):
            needed.append(change)
            for index in tested:
                left[index] -= 1
    return needed


def verified(trace: Trace, changes: Sequence[Change], values: Sequence[Sequence[int]]) -> list[bool]:
    """Whether each step follows the changes of the question that change it: two of the first three.

    `values`: what each row says of each changed question.
    """
    found = []
    for index, step in enumerate(trace):
        tested = (at for at, change in enumerate(changes) if change.values[index] != step.value)
        followed = [values[at][step.row] == changes[at].values[index] for at in itertools.islice(tested, _TRIED)]
        found.append(sum(followed) >= _NEEDED)
    return found


def described(reading: Reading, trace: Trace, verified: Sequence[bool] | None) -> list[dict[str, Any]]:
    """Each row as a user reads it, counted from 1; with an operation and, if it was put to the test, what came of that where it
    is a step of the trace."""
    steps = {step.row: (step.operation, verified[at] if verified is not None else None) for at, step in enumerate(trace)}
    rows = []
    for row, (value, probability) in enumerate(zip(reading.values, reading.probabilities, strict=True)):
        operation, is_verified = steps.get(row, (None, None))
        rows.append(
            {
                "latent": row + 1,
                "value": value,
                "operation": operation,
                "probability": round(probability, 4),
                "verified": is_verified,
            }
        )
    return rows


def equations(text: str) -> list[tuple[str, int]]:
    """(operation, result) of each equation in a chain that is right."""
    found = [(int(a), _SIGNS.get(op, op), int(b), int(c)) for a, op, b, c in _EQUATION.findall(text)]
    return [(f"{a} {op} {b}", c) for a, op, b, c in found if _apply(a, op, b) == c]
