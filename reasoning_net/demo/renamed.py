"""The demo's questions with other people, things and months, and with their idle sentences elsewhere: the same sums.

Each word becomes another one of as many tokens (one) that the demo knows, and that it never puts there: names become those of
the other pronoun, what is counted becomes what is only ever bought, met or climbed.
"""

import random
import re
from collections.abc import Collection

from reasoning_net.demo.story import MONTHS

_PEOPLE = "Ann Tom Eva Bob Mia Max Zoe Ben Lucy Sam Nora Leo".split()  # a woman, a man, …
_THINGS = {
    "pen": "problem", "apple": "bird", "coin": "passenger", "card": "cup", "book": "branch", "shell": "kite", "stamp": "ball",
    "marble": "cake", "cup": "card", "kite": "shell", "ball": "stamp", "cake": "marble", "lamp": "floor", "passenger": "coin",
    "step": "apple", "floor": "lamp", "branch": "book",
}  # fmt: skip
_VEHICLES = {"bus": "dog", "train": "cat", "tram": "house", "boat": "city", "plane": "phone", "ferry": "movie"}
_ANCHOR = re.compile(r"^((?:In \w+|On the \w+ day|At the \w+ (?:stop|bell)), )(.+)$")


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("ch") else f"{word}s"


_WORDS = {
    **dict(zip(_PEOPLE, [name for pair in zip(_PEOPLE[1::2], _PEOPLE[::2], strict=True) for name in pair], strict=True)),
    **{month: MONTHS[(at + 5) % 11] for at, month in enumerate(MONTHS[:11])},  # a twelfth one is several tokens, and never met
    **_THINGS,
    **{_plural(word): _plural(other) for word, other in _THINGS.items()},
    **_VEHICLES,
}
_KNOWN = re.compile(rf"\b({'|'.join(_WORDS)})\b")


def renamed(question: str) -> str:
    """The question about others: people, things, vehicles and months, each word always as the same other one."""
    return _KNOWN.sub(lambda found: _WORDS[found[1]], question)


def reordered(question: str, idle: Collection[str], rng: random.Random) -> str:
    """The question with its idle sentences at other places in the story, whose days or months stay where they are."""
    sentences = re.split(r"(?<=[.?]) ", question)
    events = [at for at, sentence in enumerate(sentences) if _ANCHOR.match(sentence)]
    parts = [_ANCHOR.match(sentences[at]) for at in events]
    anchors, bodies = [part[1] for part in parts if part], [part[2] for part in parts if part]
    rest = [sentences[at] in idle for at in events]
    counting = iter([body for body, is_idle in zip(bodies, rest, strict=True) if not is_idle])
    idling = iter(rng.sample(found := [body for body, is_idle in zip(bodies, rest, strict=True) if is_idle], len(found)))
    rng.shuffle(rest)
    for at, anchor, is_idle in zip(events, anchors, rest, strict=True):
        sentences[at] = anchor + next(idling if is_idle else counting)
    return " ".join(sentences)
