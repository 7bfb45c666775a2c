"""Whether numbers that were read off latents are a reason for an answer: steps of arithmetic that lead to it.

After "Are latent reasoning models easily interpretable?" (2604.04902), forwards and without a known chain: a result is the
likeliest number of a row; its operands are numbers of the question, earlier results, or what earlier rows say.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

_NUMBER = re.compile(r"\d+")
_EQUATION = re.compile(r"(\d+) ?([-+*x×/÷]) ?(\d+) ?= ?(\d+)")
_SIGNS = {"x": "*", "×": "*", "÷": "/"}
_CHANGES = (1, -1, 2)
_LARGEST = 99


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
        given = [Operand(int(number), place=place) for place, number in enumerate(_NUMBER.findall(question))]
        steps: list[Step] = []
        for row, value in enumerate(values):
            if value is None or any(step.value == value for step in steps):
                continue
            results = [Operand(step.value, step=index) for index, step in enumerate(steps)][::-1]
            if (found := _explained(value, results, given, row)) is not None:
                steps.append(found)
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


def _explained(value: int, results: Sequence[Operand], given: Sequence[Operand], row: int) -> Step | None:
    """The first way to come to a value: from the last results on, with a number of the question rather than another result."""
    two = Operand(2)
    pairs = itertools.chain(
        itertools.product(results, given),
        ((one, two) for one in results),
        itertools.permutations(given, 2),
        ((one, two) for one in given),
        itertools.permutations(results, 2),
    )
    for left, right in pairs:
        for op in "*/" if right is two else "+-*/":
            changes_nothing = value == left.value or (op in "+*" and value == right.value)
            if _apply(left.value, op, right.value) == value and not changes_nothing:
                return Step(row, left, op, right, value)
    return None


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


def equations(text: str) -> list[tuple[str, int]]:
    """(operation, result) of each equation in a chain that is right."""
    found = [(int(a), _SIGNS.get(op, op), int(b), int(c)) for a, op, b, c in _EQUATION.findall(text)]
    return [(f"{a} {op} {b}", c) for a, op, b, c in found if _apply(a, op, b) == c]
