"""How a question and its chain are written: sentences in order, and the thinking that follows them.

Chains are written as slow-thinking models write them. Every sentence is restated with the value that it leaves, in one of
three phrasings. Some results are doubted; some are wrong and mended at once; a few are wrong, stand, and are only found by the
check at the end. That check comes in full, in short, or not at all. All of this is drawn by the hash of the question, so the
same question always has the same chain, and no chain follows from its question alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

MONTHS = "January February March April May June July August September October November December".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_NOTICED, _MISSED = 0.06, 0.08  # shares: of results that are wrong at first; of chains with a wrong result that stands
_DOUBTED = {"+": 0.1}  # shares of results; the others:
_DOUBTED_ELSE = 0.4
_CHECKS = ("full", "short", "none")


class Calendar:
    """Anchors that put the sentences in order: "In March, …" or "On the third day, …"."""

    def __init__(self, anchors: str, words: Sequence[str]) -> None:
        self._anchors, self._words = anchors, iter(words)

    def __call__(self, event: str) -> str:
        return f"{self._anchors.format(next(self._words))}, {event}."


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a solution: `op operand` on what `who` has."""

    who: str
    op: str
    operand: int

    def apply(self, value: int) -> int:
        match self.op:
            case "+":
                return value + self.operand
            case "-":
                return value - self.operand
            case "*":
                return value * self.operand
            case _:
                return value // self.operand

    def is_possible(self, value: int) -> bool:
        """Whether the result is a whole number that the demo writes."""
        return 0 <= self.apply(value) < 100 and (self.op != "/" or value % self.operand == 0)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One event of a story; without operations it changes nothing."""

    text: str
    operations: tuple[Operation, ...] = ()
    note: str = ""
    """A calculation that comes first, such as a price."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The lines of a chain, and what each of them leaves standing."""

    lines: tuple[str, ...]
    standing: tuple[int, ...]
    """The value of the asked quantity after each line."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True, slots=True)
class Dependence:
    """What rests on what in a question and its chain."""

    reads: tuple[tuple[int, ...], ...]
    """For each line of the chain, the lines before that last set the values that it states; of the last line, the answer."""
    matters: tuple[bool, ...]
    """For each sentence that tells what happens, whether the answer is computed from it."""


class Story:
    """One question as it is written: its sentences, and the values that change. The first of `values` is asked for."""

    def __init__(self, what: str, values: dict[str, int], at: Calendar) -> None:
        self.what, self.values, self.text = what, dict(values), list[str]()
        self.start, self.sentences = dict(values), list[Sentence]()
        self.asked = next(iter(values))
        self.results = list(values.values())
        """The values at the start, and what each operation comes to."""
        self._at = at

    @property
    def value(self) -> int:
        return self.values[self.asked]

    @property
    def operations(self) -> list[Operation]:
        return [operation for sentence in self.sentences for operation in sentence.operations]

    @property
    def condensed(self) -> list[int | str]:
        """The values at the start; operator, operand and result of each operation."""
        start, results = self.results[: len(self.start)], self.results[len(self.start) :]
        steps = zip(self.operations, results, strict=True)
        return [*start, *(part for one, result in steps for part in (one.op, one.operand, result))]

    def happens(self, event: str, *operations: Operation, note: str = "") -> None:
        self.text.append(self._at(event))
        self.sentences.append(Sentence(self.text[-1], operations, note))
        for operation in operations:
            self.values[operation.who] = operation.apply(self.values[operation.who])
            self.results.append(self.values[operation.who])

    @property
    def dependence(self) -> Dependence:
        """A line states all values; the second one those at the start."""
        last_set, rests_on = dict.fromkeys(self.values, 1), {who: set[int]() for who in self.values}
        reads: list[tuple[int, ...]] = [(), ()]
        for line, sentence in enumerate(self.sentences, 2):
            reads.append(tuple(sorted(set(last_set.values()))))
            for operation in sentence.operations:
                halved = [one.who for one in sentence.operations if one.op == "/"]  # what is given is half of what they have
                for who in {operation.who, *halved}:
                    rests_on[operation.who] |= rests_on[who]
                rests_on[operation.who].add(line)
                last_set[operation.who] = line
        matters = tuple(line in rests_on[self.asked] for line in range(2, len(reads)))
        return Dependence((*reads, (last_set[self.asked],)), matters)

    def chain(self, question: str) -> Chain:
        return _Writer(self, random.Random(question)).write()


class _Writer:
    """Writes one chain."""

    def __init__(self, story: Story, rng: random.Random) -> None:
        self._story, self._rng, self._values = story, rng, dict(story.start)
        self._operations = story.operations
        self._slip, self._slipped = self._draw_slip() if rng.random() < _MISSED else (None, 0)
        self._done = 0

    def write(self) -> Chain:
        story = self._story
        lines = [f"I need the number of {story.what} of {story.asked}.", f"At the start {self._state(story.start)}."]
        standing = [story.start[story.asked]] * 2
        for sentence in story.sentences:
            lines.append(self._line(sentence))
            standing.append(self._values[story.asked])
        lines.append(self._end())
        return Chain(tuple(lines), (*standing, story.value))

    def _line(self, sentence: Sentence) -> str:
        if not sentence.operations:
            nothing = self._rng.choice(("That changes nothing. Now {}.", "So nothing changes: {}."))
            return f"{self._opened(sentence.text)} {nothing.format(self._state(self._values))}"
        worked = [self._opened(sentence.text), *([sentence.note] if sentence.note else [])]
        worked += [self._work(operation) for operation in sentence.operations]
        end = self._rng.choice(("Now {}.", "So {}.", "That leaves it: {}."))
        return " ".join([*worked, end.format(self._state(self._values))])

    def _opened(self, text: str) -> str:
        return self._rng.choice(("", "Next: ", "Then: ")) + text

    def _work(self, operation: Operation) -> str:
        before = self._values[operation.who]
        after = operation.apply(before)
        # A name right before its number: what a small model finds again.
        whose = f"{operation.who} " if len(self._values) > 1 else ""
        left = f"{whose}{before} {operation.op} {operation.operand}"
        is_slip, self._done = self._done == self._slip, self._done + 1
        if is_slip:
            self._values[operation.who] = self._slipped
            return f"{left} = {self._slipped}."
        self._values[operation.who] = after
        if self._rng.random() < _NOTICED:
            return f"{left} = {self._wrong(after)}. Wait, that is wrong. {left} = {after}."
        doubt = ""
        if self._rng.random() < _DOUBTED.get(operation.op, _DOUBTED_ELSE):
            less, more = sorted((before, after))
            doubt = f" Wait, is that right? {less} + {more - less} = {more}, yes."
        phrase = self._rng.choice(("{} = {}.", "That is {} = {}.", "Let me see: {} = {}."))
        return phrase.format(left, after) + doubt

    def _end(self) -> str:
        story, check = self._story, self._rng.choice(_CHECKS)
        answer = f"So the answer is {story.value}."
        if self._slip is None and check != "full":
            return answer if check == "none" else f"That looks right. {answer}"
        values, sums = dict(story.start), list[str]()
        for index, operation in enumerate(self._operations):
            before, after = values[operation.who], operation.apply(values[operation.who])
            values[operation.who] = after
            found = " and not what I had" if index == self._slip else ""
            sums.append(f"{before} {operation.op} {operation.operand} = {after}{found}")
        end = "the same" if self._slip is None else "so I was wrong"
        return f"Let me check it again: {', '.join(sums)}, {end}. {answer}"

    def _draw_slip(self) -> tuple[int | None, int]:
        """(the operation whose result will be wrong, that result); None where what follows would not be possible."""
        values, slip, wrong = dict(self._story.start), self._rng.randrange(len(self._operations)), 0
        for index, operation in enumerate(self._operations):
            before = values[operation.who]
            if not operation.is_possible(before) or (index > slip and operation.op == "/" and len(values) > 1):
                return None, 0  # half of what another one has is a number in the story
            values[operation.who] = operation.apply(before)
            if index == slip:
                values[operation.who] = wrong = self._wrong(values[operation.who])
        return slip, wrong

    def _wrong(self, right: int) -> int:
        near = [value for value in (right - 2, right - 1, right + 1, right + 2) if value >= 0]
        return self._rng.choice(near)

    def _state(self, values: dict[str, int]) -> str:
        return " and ".join(f"{who} {'' if len(values) > 1 else 'has '}{value}" for who, value in values.items())
