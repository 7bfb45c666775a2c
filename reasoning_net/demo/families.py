"""The stories of the demo's questions.

counting    one person's changing count
buying      money and prices
riding      passengers get on and off, often both at one stop
sharing     two people with the same things, who give each other some
climbing    somebody on stairs or in a tree: the network's training leaves it out, it is the test of transfer
"""

import random
from collections.abc import Callable

from reasoning_net.demo.story import MONTHS, ORDINALS, Calendar, Operation, Story

Written = tuple[Story, str, Callable[[int], str]]
"""The story, the sentence that asks, and the reply to a value."""

_WOMEN = ("Ann", "Eva", "Mia", "Zoe", "Lucy", "Nora")
_MEN = ("Tom", "Bob", "Max", "Ben", "Sam", "Leo")
_ITEMS = ("pens", "apples", "coins", "cards", "books", "shells", "stamps", "marbles")
_GOODS = ("pens", "cups", "kites", "balls", "cakes", "lamps")
_VEHICLES = ("bus", "train", "tram", "boat", "plane", "ferry")
_CLIMBS = ("steps", "floors", "branches")


def _many(n: int, plural: str) -> str:
    """ "1 pen", "2 pens"."""
    return f"{n} {plural if n != 1 else 'branch' if plural == 'branches' else plural[:-1]}"


def _days_or_months(rng: random.Random) -> Calendar:
    return Calendar("In {}", MONTHS) if rng.random() < 0.5 else Calendar("On the {} day", ORDINALS)


def _schedule(rng: random.Random, steps: int) -> list[bool]:
    """True for a sentence that counts, False for one that changes nothing (0–3 of those)."""
    slots = [True] * steps + [False] * rng.randint(0, 3)
    rng.shuffle(slots)
    return slots


def _amount(rng: random.Random, hard: float, most: int) -> int:
    return rng.randint(1, min(most, 9)) if rng.random() < hard else rng.randint(1, min(most, 3))


def _change(rng: random.Random, story: Story, who: str, cap: int, hard: float) -> Operation:
    """A legal operation on what `who` has."""
    value = story.values[who]
    if rng.random() < 0.35 * hard:
        if value % 2 == 0 and value > 0 and rng.random() < 0.5:
            return Operation(who, "/", 2)
        if 0 < 2 * value <= cap:
            return Operation(who, "*", 2)
    plus = value == 0 or (value < cap and rng.random() < 0.5)
    return Operation(who, "+" if plus else "-", _amount(rng, hard, cap - value if plus else value))


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


_VERBS = {
    "+": ("buys {many}", "finds {many}", "gets {many} from a friend"),
    "-": ("loses {many}", "gives {many} away", "sells {many}"),
    "*": ("doubles the number of {item}", "gets as many {item} again"),
    "/": ("gives half of the {item} away", "sells half of the {item}"),
}


def _event(rng: random.Random, operation: Operation, item: str) -> str:
    """What somebody does, without the name."""
    return rng.choice(_VERBS[operation.op]).format(many=_many(operation.operand, item), item=item)


def _counting(rng: random.Random, steps: int) -> Written:
    name, pronoun, strangers = _person(rng)
    item, hard, cap = rng.choice(_ITEMS), rng.choice((0.0, 0.5, 1.0)), 20
    story = Story(item, {name: rng.randint(1, cap)}, _days_or_months(rng))
    story.text.append(f"{name} {rng.choice(('has', 'starts with'))} {_many(story.value, item)}.")
    for counts in _schedule(rng, steps):
        if counts:
            operation = _change(rng, story, name, cap, hard)
            story.happens(f"{pronoun} {_event(rng, operation, item)}", operation)
        else:
            story.happens(_nothing(rng, pronoun, item, strangers))
    ends = (f"How many {item} does {name} have now?", f"What is the number of {item} that {name} has at the end?")
    return story, rng.choice(ends), lambda value: f"{name} has {_many(value, item)}."


def _buying(rng: random.Random, steps: int) -> Written:
    name, pronoun, strangers = _person(rng)
    hard, cap = rng.choice((0.0, 0.5, 1.0)), 30
    goods = rng.sample(_GOODS, 2)
    price = {plural: rng.randint(1, 5 if hard else 3) for plural in goods}
    story = Story("coins", {name: rng.randint(12, cap)}, _days_or_months(rng))
    prices = " and ".join(f"{plural} {price[plural]}" for plural in goods)
    story.text += [
        rng.choice((f"The prices in coins are {prices}.", f"In a shop, the prices are {prices}.")),
        f"{name} has {_many(story.value, 'coins')}.",
    ]
    for counts in _schedule(rng, steps):
        if not counts:
            story.happens(_nothing(rng, pronoun, "coins", strangers))
            continue
        plural, value = rng.choice(goods), story.value
        most = min(value // price[plural], 4 if hard else 2, 12 // price[plural])
        if most and rng.random() < 0.6:
            n = rng.randint(1, most)
            cost = n * price[plural]
            note = f"{plural} {price[plural]}: {n} x {price[plural]} = {cost}."
            story.happens(f"{pronoun} buys {_many(n, plural)}", Operation(name, "-", cost), note=note)
        else:
            plus = value == 0 or (value < cap and rng.random() < 0.75)
            n = _amount(rng, hard, cap - value if plus else value)
            verb = rng.choice(("earns", "finds") if plus else ("loses", "gives away"))
            story.happens(f"{pronoun} {verb} {_many(n, 'coins')}", Operation(name, "+" if plus else "-", n))
    ends = (f"How many coins does {name} have now?", f"How many coins are left for {name} at the end?")
    return story, rng.choice(ends), lambda value: f"{name} has {_many(value, 'coins')}."


def _riding(rng: random.Random, steps: int) -> Written:
    vehicle, hard, cap = rng.choice(_VEHICLES), rng.choice((0.0, 0.5, 1.0)), 20
    what, others, who = "passengers", [other for other in _VEHICLES if other != vehicle], f"the {vehicle}"
    story = Story(what, {who: rng.randint(1, cap)}, Calendar("At the {} stop", ORDINALS))
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
            story.happens(_nothing_on_the_way(rng, others))
            continue
        first = _change(rng, story, who, cap, hard)
        event, operations = rng.choice(phrases[first.op]).format(many=_many(first.operand, what)), [first]
        if first.op in "+-" and schedule[:1] == [True] and rng.random() < 0.5:  # the next step happens at the same stop
            schedule.pop(0)
            after = first.apply(story.value)
            plus = after == 0 or (after < cap and first.op == "-")
            n = _amount(rng, hard, cap - after if plus else after)
            event += f" and {n} got {'on' if plus else 'off'}"
            operations.append(Operation(who, "+" if plus else "-", n))
        story.happens(event, *operations)
    ends = (f"How many {what} does the {vehicle} have now?", f"How many {what} are in the {vehicle} at the end?")
    return story, rng.choice(ends), lambda value: f"The {vehicle} has {_many(value, what)}."


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


def _sharing(rng: random.Random, steps: int) -> Written:
    name, pronoun, strangers = _person(rng)
    other = rng.choice(strangers)
    strangers = [stranger for stranger in strangers if stranger != other]
    item, hard, cap = rng.choice(_ITEMS), rng.choice((0.0, 0.5, 1.0)), 20
    story = Story(item, {name: rng.randint(1, 12), other: rng.randint(1, 12)}, _days_or_months(rng))
    get = [f"{who} {_many(value, item)}" for who, value in story.values.items()]
    story.text.append(f"{rng.choice(strangers)} gives {' and '.join(get if rng.random() < 0.5 else get[::-1])}.")
    schedule = _schedule(rng, steps)
    while schedule:
        if not schedule.pop(0):
            story.happens(_nothing(rng, pronoun, item, strangers))
            continue
        giver, taker = rng.sample((name, other), 2)
        has, room = story.values[giver], cap - story.values[taker]
        if schedule[:1] == [True] and min(has, room) and rng.random() < 0.6:  # a gift is two steps
            schedule.pop(0)
            half = has % 2 == 0 and has // 2 <= room and rng.random() < 0.35 * hard
            n = has // 2 if half else _amount(rng, hard, min(has, room))
            given = Operation(giver, "/", 2) if half else Operation(giver, "-", n)
            what = f"half of the {item}" if half else _many(n, item)
            story.happens(f"{giver} gives {what} to {taker}", given, Operation(taker, "+", n))
        else:
            operation = _change(rng, story, giver, cap, hard)
            story.happens(f"{giver} {_event(rng, operation, item)}", operation)
    ends = (f"How many {item} does {name} have now?", f"What is the number of {item} that {name} has at the end?")
    return story, rng.choice(ends), lambda value: f"{name} has {_many(value, item)}."


def _climbing(rng: random.Random, steps: int) -> Written:
    name, pronoun, strangers = _person(rng)
    what, hard, cap = rng.choice(_CLIMBS), rng.choice((0.0, 0.5, 1.0)), 20
    story = Story(what, {name: rng.randint(1, cap)}, Calendar("At the {} bell", ORDINALS))
    story.text.append(f"{name} stands {_many(story.value, what)} above the ground.")
    phrases = {
        "+": ("climbs {many} higher", "goes {many} up"),
        "-": ("climbs {many} down", "comes {many} down"),
        "*": ("climbs to double the height", "goes as many {what} up again"),
        "/": ("climbs down to half of the height", "comes down half of the {what}"),
    }
    for counts in _schedule(rng, steps):
        if counts:
            operation = _change(rng, story, name, cap, hard)
            verb = rng.choice(phrases[operation.op]).format(many=_many(operation.operand, what), what=what)
            story.happens(f"{pronoun} {verb}", operation)
        else:
            story.happens(
                rng.choice(
                    (
                        "it rains all day",
                        f"{pronoun} stays and looks at the birds",
                        f"{rng.choice(strangers)} climbs {_many(rng.randint(1, 9), what)} higher",
                        f"{pronoun} counts {_many(rng.randint(1, 9), rng.choice(_ITEMS))}",
                    )
                )
            )
    ends = (f"How many {what} up is {name} now?", f"How many {what} above the ground is {name} at the end?")
    return story, rng.choice(ends), lambda value: f"{name} is {_many(value, what)} up."


BUILDERS: dict[str, Callable[[random.Random, int], Written]] = {
    "counting": _counting,
    "buying": _buying,
    "riding": _riding,
    "sharing": _sharing,
    "climbing": _climbing,
}
