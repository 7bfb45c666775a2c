"""The demo task: word problems whose answer is a small whole number, with the chain that solves them.

Two families: `counting` (one person's changing count) and `buying` (money, prices). Chains are written as slow-thinking
models write them: every step restated, the values that the next step needs stated in full and right behind their names,
some doubt, a re-check at the end. Difficulty does not follow from length alone: some sentences change nothing, and steps
are easy (plus or minus one to three) or hard (doubling, halving, larger numbers).

A question is a test question when the hash of its text says so: train and test are disjoint by construction, for
every seed.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]
FAMILIES = ("counting", "buying")
MAX_STEPS = 8

_WOMEN = ("Ann", "Eva", "Mia", "Zoe", "Lucy", "Nora")
_MEN = ("Tom", "Bob", "Max", "Ben", "Sam", "Leo")
_ITEMS = ("pens", "apples", "coins", "cards", "books", "shells", "stamps", "marbles")
_GOODS = ("pens", "cups", "kites", "balls", "cakes", "lamps")
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

    def __init__(self, rng: random.Random) -> None:
        self._words = _MONTHS if rng.random() < 0.5 else _ORDINALS
        self._next = 0

    def __call__(self, event: str) -> str:
        word = self._words[self._next]
        self._next += 1
        return f"In {word}, {event}." if self._words is _MONTHS else f"On the {word} day, {event}."


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
    """Second thoughts after an operation that depends on the value itself."""
    half = min(before, after)
    return f" Wait, is that right? {half} + {half} = {max(before, after)}, yes." if op in "*/" else ""


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
    value = start = rng.randint(1, cap)
    values = [start]
    text = [rng.choice((f"{name} has {_many(value, item)}.", f"{name} starts with {_many(value, item)}."))]
    lines, check, at = [f"I need the number of {item} of {name}.", f"At the start {name} has {value}."], "", _Calendar(rng)
    phrases = {
        "+": ("buys {many}", "finds {many}", "gets {many} from a friend"),
        "-": ("loses {many}", "gives {many} away", "sells {many}"),
        "*": ("doubles the number of {item}", "gets as many {item} again"),
        "/": ("gives half of the {item} away", "sells half of the {item}"),
    }
    for counts in _schedule(rng, steps):
        if not counts:
            text.append(at(_nothing(rng, pronoun, item, strangers)))
            lines.append(f"{text[-1]} That changes nothing. Now {name} has {value}.")
            continue
        op, n, after = _change(rng, value, cap, hard)
        text.append(at(f"{pronoun} {rng.choice(phrases[op]).format(many=_many(n, item), item=item)}"))
        lines.append(f"{text[-1]} {value} {op} {n} = {after}.{_doubt(value, op, after)} Now {name} has {after}.")
        check += f" {op} {n} = {after},"
        value = after
        values.append(value)
    text.append(
        rng.choice((f"How many {item} does {name} have now?", f"What is the number of {item} that {name} has at the end?"))
    )
    lines.append(f"Let me check it again: {start}{check} the same. So the answer is {value}.")
    return Question(
        " ".join(text), "\n".join(lines), f"{name} has {_many(value, item)}.", value, "counting", steps, tuple(values)
    )


def _buying(rng: random.Random, steps: int) -> Question:
    name, pronoun, strangers = _person(rng)
    hard, cap = rng.choice((0.0, 0.5, 1.0)), 30
    goods = rng.sample(_GOODS, 2)
    price = {plural: rng.randint(1, 5 if hard else 3) for plural in goods}
    value = start = rng.randint(12, cap)
    values = [start]
    prices = " and ".join(f"{plural} {price[plural]}" for plural in goods)
    text = [
        rng.choice((f"The prices in coins are {prices}.", f"In a shop, the prices are {prices}.")),
        f"{name} has {_many(value, 'coins')}.",
    ]
    lines, check, at = [f"I need the number of coins of {name}.", f"At the start {name} has {value}."], "", _Calendar(rng)
    for counts in _schedule(rng, steps):
        if not counts:
            text.append(at(_nothing(rng, pronoun, "coins", strangers)))
            lines.append(f"{text[-1]} That changes nothing. Now {name} has {value}.")
            continue
        plural = rng.choice(goods)
        most = min(value // price[plural], 4 if hard else 2, 12 // price[plural])
        if most and rng.random() < 0.6:
            n = rng.randint(1, most)
            cost = n * price[plural]
            text.append(at(f"{pronoun} buys {_many(n, plural)}"))
            line = f"{plural} {price[plural]}: {n} x {price[plural]} = {cost}."
            op, after = "-", value - cost
        else:
            plus = value == 0 or (value < cap and rng.random() < 0.75)
            cost = _amount(rng, hard, cap - value if plus else value)
            verb = rng.choice(("earns", "finds") if plus else ("loses", "gives away"))
            text.append(at(f"{pronoun} {verb} {_many(cost, 'coins')}"))
            line, op, after = "", "+" if plus else "-", value + cost if plus else value - cost
        lines.append(" ".join(filter(None, (text[-1], line, f"{value} {op} {cost} = {after}. Now {name} has {after}."))))
        check += f" {op} {cost} = {after},"
        value = after
        values.append(value)
    text.append(rng.choice((f"How many coins does {name} have now?", f"How many coins are left for {name} at the end?")))
    lines.append(f"Let me check it again: {start}{check} the same. So the answer is {value}.")
    return Question(
        " ".join(text), "\n".join(lines), f"{name} has {_many(value, 'coins')}.", value, "buying", steps, tuple(values)
    )


_BUILDERS: dict[str, Callable[[random.Random, int], Question]] = {
    "counting": _counting,
    "buying": _buying,
}
