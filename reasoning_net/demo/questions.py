"""The demo task: word problems whose answer is a small whole number, with the chain that solves them.

Three families: `counting` (one person's changing count), `buying` (money, prices) and `riding` (passengers get on and off,
often both at one stop). Chains are written as slow-thinking models write them: every step restated, the values that the
next step needs stated in full and right behind their names, some doubt, a re-check at the end. Difficulty does not follow
from length alone: some sentences change nothing, some hold two steps, and steps are easy (plus or minus one to three) or
hard (doubling, halving, larger numbers).

A question is a test question when the hash of its text says so: train and test are disjoint by construction, for
every seed.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]
FAMILIES = ("counting", "buying", "riding")
MAX_STEPS = 8

_WOMEN = ("Ann", "Eva", "Mia", "Zoe", "Lucy", "Nora")
_MEN = ("Tom", "Bob", "Max", "Ben", "Sam", "Leo")
_ITEMS = ("pens", "apples", "coins", "cards", "books", "shells", "stamps", "marbles")
_GOODS = ("pens", "cups", "kites", "balls", "cakes", "lamps")
_VEHICLES = ("bus", "train", "tram", "boat", "plane", "ferry")
_MONTHS = "January February March April May June July August September October November December".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()


@dataclass(frozen=True, slots=True)
class Question:
    """One word problem. `chain` is the text between the think tags, `reply` the sentence that answers."""

    question: str
    chain: str
    reply: str
    answer: int
    family: str
    steps: int
    values: tuple[int, ...]
    """The asked quantity at the start and after each step."""

    def public_json(self) -> str:
        """One JSON line with what a client may see: question, answer, steps, family."""
        keys = ("question", "answer", "steps", "family")
        return json.dumps({key: value for key, value in asdict(self).items() if key in keys})


def split_of(question: str) -> Split:
    """The split a question belongs to, by the hash of its text: 80 % train, 10 % validation, 10 % test."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def final_number(reply: str) -> int | None:
    """The last whole number in a reply, which is how a reply to a demo question is graded; None when it has none."""
    digits = "".join(c if c.isdigit() else " " for c in reply).split()
    return int(digits[-1]) if digits else None


def questions(
    seed: int, split: Split, *, max_steps: int = MAX_STEPS, families: tuple[str, ...] = FAMILIES
) -> Iterator[Question]:
    """An endless stream of questions of one split, steps uniform in 1…`max_steps`; the same for the same seed."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        yield draw(rng, split, rng.randint(1, max_steps), rng.choice(families))


def draw(rng: random.Random, split: Split, steps: int, family: str) -> Question:
    """One question of `split` with this many steps."""
    while True:
        question = _BUILDERS[family](rng, steps)
        if split_of(question.question) == split:
            return question


class _Calendar:
    """Anchors that put the sentences in order: "In March, …" or "On the third day, …"."""

    def __init__(self, anchors: str, words: Sequence[str]) -> None:
        self._anchors, self._words = anchors, iter(words)

    def __call__(self, event: str) -> str:
        return f"{self._anchors.format(next(self._words))}, {event}."


def _days_or_months(rng: random.Random) -> _Calendar:
    return _Calendar("In {}", _MONTHS) if rng.random() < 0.5 else _Calendar("On the {} day", _ORDINALS)


class _Story:
    """One question as it is written: its sentences, the chain that follows them, and the value that changes."""

    def __init__(self, who: str, what: str, value: int, at: _Calendar) -> None:
        self.who, self.value, self.values, self.text = who, value, [value], list[str]()
        self._at = at
        self._lines = [f"I need the number of {what} of {who}.", f"At the start {who} has {value}."]
        self._check: list[str] = []

    def nothing(self, event: str) -> None:
        self.text.append(self._at(event))
        self._lines.append(f"{self.text[-1]} That changes nothing. Now {self.who} has {self.value}.")

    def step(self, event: str, *operations: tuple[str, int, int], note: str = "") -> None:
        """What the event does to the value: (operator, operand, result) in order."""
        self.text.append(self._at(event))
        worked = [self.text[-1], note] if note else [self.text[-1]]
        for op, n, after in operations:
            sum_ = f"{self.value} {op} {n} = {after}"
            worked.append(f"{sum_}.{_doubt(self.value, op, after)}")
            self._check.append(sum_)
            self.value = after
            self.values.append(after)
        self._lines.append(" ".join([*worked, f"Now {self.who} has {self.value}."]))

    def question(self, end: str, reply: str, family: str) -> Question:
        check = f"Let me check it again: {', '.join(self._check)}, the same. So the answer is {self.value}."
        text, chain = " ".join([*self.text, end]), "\n".join([*self._lines, check])
        return Question(text, chain, reply, self.value, family, len(self._check), tuple(self.values))


def _schedule(rng: random.Random, steps: int) -> list[bool]:
    """True for a sentence that counts, False for one that changes nothing (0–3 of those)."""
    slots = [True] * steps + [False] * rng.randint(0, 3)
    rng.shuffle(slots)
    return slots


def _many(n: int, plural: str) -> str:
    """ "1 pen", "2 pens"."""
    return f"{n} {plural if n != 1 else plural[:-1]}"


def _amount(rng: random.Random, hard: float, most: int) -> int:
    return rng.randint(1, min(most, 9)) if rng.random() < hard else rng.randint(1, min(most, 3))


def _change(rng: random.Random, value: int, cap: int, hard: float) -> tuple[str, int, int]:
    """A legal operation on `value`: (operator, operand, result)."""
    if rng.random() < 0.35 * hard:
        if value % 2 == 0 and value > 0 and rng.random() < 0.5:
            return "/", 2, value // 2
        if 0 < 2 * value <= cap:
            return "*", 2, 2 * value
    plus = value == 0 or (value < cap and rng.random() < 0.5)
    n = _amount(rng, hard, cap - value if plus else value)
    return ("+", n, value + n) if plus else ("-", n, value - n)


def _doubt(before: int, op: str, after: int) -> str:
    """Second thoughts after whatever is not a plain addition."""
    less, more = sorted((before, after))
    return "" if op == "+" else f" Wait, is that right? {less} + {more - less} = {more}, yes."


def _nothing(rng: random.Random, who: str, item: str, strangers: list[str]) -> str:
    other_item = rng.choice([i for i in _ITEMS if i != item])
    return rng.choice(
        (
            "it rains all day",
            f"{who} reads a book about {item}",
            f"{who} shows {_many(rng.randint(1, 9), item)} to a friend",
            f"{rng.choice(strangers)} buys {_many(rng.randint(1, 9), other_item)}",
            f"{rng.choice(strangers)} loses {_many(rng.randint(1, 9), item)}",
        )
    )


def _person(rng: random.Random) -> tuple[str, str, list[str]]:
    """Somebody, the pronoun, and everybody else."""
    everyone = [*_WOMEN, *_MEN]
    name = rng.choice(everyone)
    return name, "she" if name in _WOMEN else "he", [other for other in everyone if other != name]


def _counting(rng: random.Random, steps: int) -> Question:
    name, pronoun, strangers = _person(rng)
    item, hard, cap = rng.choice(_ITEMS), rng.choice((0.0, 0.5, 1.0)), 20
    story = _Story(name, item, rng.randint(1, cap), _days_or_months(rng))
    story.text.append(f"{name} {rng.choice(('has', 'starts with'))} {_many(story.value, item)}.")
    phrases = {
        "+": ("buys {many}", "finds {many}", "gets {many} from a friend"),
        "-": ("loses {many}", "gives {many} away", "sells {many}"),
        "*": ("doubles the number of {item}", "gets as many {item} again"),
        "/": ("gives half of the {item} away", "sells half of the {item}"),
    }
    for counts in _schedule(rng, steps):
        if counts:
            op, n, after = _change(rng, story.value, cap, hard)
            story.step(f"{pronoun} {rng.choice(phrases[op]).format(many=_many(n, item), item=item)}", (op, n, after))
        else:
            story.nothing(_nothing(rng, pronoun, item, strangers))
    ends = (f"How many {item} does {name} have now?", f"What is the number of {item} that {name} has at the end?")
    return story.question(rng.choice(ends), f"{name} has {_many(story.value, item)}.", "counting")


def _buying(rng: random.Random, steps: int) -> Question:
    name, pronoun, strangers = _person(rng)
    hard, cap = rng.choice((0.0, 0.5, 1.0)), 30
    goods = rng.sample(_GOODS, 2)
    price = {plural: rng.randint(1, 5 if hard else 3) for plural in goods}
    story = _Story(name, "coins", rng.randint(12, cap), _days_or_months(rng))
    prices = " and ".join(f"{plural} {price[plural]}" for plural in goods)
    story.text += [
        rng.choice((f"The prices in coins are {prices}.", f"In a shop, the prices are {prices}.")),
        f"{name} has {_many(story.value, 'coins')}.",
    ]
    for counts in _schedule(rng, steps):
        if not counts:
            story.nothing(_nothing(rng, pronoun, "coins", strangers))
            continue
        plural, value = rng.choice(goods), story.value
        most = min(value // price[plural], 4 if hard else 2, 12 // price[plural])
        if most and rng.random() < 0.6:
            n = rng.randint(1, most)
            cost = n * price[plural]
            note = f"{plural} {price[plural]}: {n} x {price[plural]} = {cost}."
            story.step(f"{pronoun} buys {_many(n, plural)}", ("-", cost, value - cost), note=note)
        else:
            plus = value == 0 or (value < cap and rng.random() < 0.75)
            n = _amount(rng, hard, cap - value if plus else value)
            verb = rng.choice(("earns", "finds") if plus else ("loses", "gives away"))
            story.step(f"{pronoun} {verb} {_many(n, 'coins')}", ("+", n, value + n) if plus else ("-", n, value - n))
    ends = (f"How many coins does {name} have now?", f"How many coins are left for {name} at the end?")
    return story.question(rng.choice(ends), f"{name} has {_many(story.value, 'coins')}.", "buying")


def _riding(rng: random.Random, steps: int) -> Question:
    vehicle, hard, cap = rng.choice(_VEHICLES), rng.choice((0.0, 0.5, 1.0)), 20
    what, others = "passengers", [other for other in _VEHICLES if other != vehicle]
    story = _Story(f"the {vehicle}", what, rng.randint(1, cap), _Calendar("At the {} stop", _ORDINALS))
    story.text.append(f"{rng.choice(('A', 'In the morning a'))} {vehicle} starts with {_many(story.value, what)}.")
    phrases = {
        "+": ("{many} got on", "{many} came in"),
        "-": ("{many} got off", "{many} left"),
        "*": ("the number of passengers doubled", "as many passengers got on as were inside"),
        "/": ("half of the passengers got off", "half of the passengers left"),
    }
    schedule = _schedule(rng, steps)
    while schedule:
        if not schedule.pop(0):
            story.nothing(_nothing_on_the_way(rng, others))
            continue
        op, n, after = _change(rng, story.value, cap, hard)
        event, changes = rng.choice(phrases[op]).format(many=_many(n, what)), [(op, n, after)]
        if op in "+-" and schedule[:1] == [True] and rng.random() < 0.5:  # the next step happens at the same stop
            schedule.pop(0)
            plus = after == 0 or (after < cap and op == "-")
            n = _amount(rng, hard, cap - after if plus else after)
            event += f" and {n} got {'on' if plus else 'off'}"
            changes.append(("+", n, after + n) if plus else ("-", n, after - n))
        story.step(event, *changes)
    ends = (f"How many {what} does the {vehicle} have now?", f"How many {what} are in the {vehicle} at the end?")
    return story.question(rng.choice(ends), f"The {vehicle} has {_many(story.value, what)}.", "riding")


def _nothing_on_the_way(rng: random.Random, other_vehicles: list[str]) -> str:
    return rng.choice(
        (
            "it rained all day",
            "nobody got on or off",
            f"the driver bought {_many(rng.randint(1, 9), rng.choice(_GOODS))}",
            f"{_many(rng.randint(1, 9), 'passengers')} read a book",
            f"{_many(rng.randint(1, 9), 'passengers')} got off a {rng.choice(other_vehicles)}",
        )
    )


_BUILDERS: dict[str, Callable[[random.Random, int], Question]] = {
    "counting": _counting,
    "buying": _buying,
    "riding": _riding,
}
