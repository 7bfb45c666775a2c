"""The demo task: word problems whose answer is a small whole number, with the chain that solves them.

Difficulty does not follow from length alone: some sentences change nothing, some hold two steps, and steps are easy (plus or
minus one to three) or hard (doubling, halving, larger numbers). `families` has the stories, `story` the way they are written.

A question is a test question when the hash of its text says so: train and test are disjoint by construction, for
every seed.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from reasoning_net.demo.families import BUILDERS
from reasoning_net.demo.story import Dependence

Split = Literal["train", "validation", "test"]
FAMILIES = tuple(BUILDERS)
SEEN = tuple(family for family in FAMILIES if family != "climbing")
"""Those that networks are trained on. The base knows climbing, too: with it transfer is tested."""
MAX_STEPS = 8


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
    """Those at the start, the asked one first, and what each step comes to."""
    condensed: tuple[str, ...]
    """The values at the start, then operator, operand and result of each step; a token each."""
    standing: tuple[str, ...]
    """The reply that each line of the chain allows, if nothing more is written."""
    dependence: Dependence
    idle: tuple[str, ...]
    """The sentences that change nothing."""

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
    seed: int, split: Split, *, steps: tuple[int, int] = (1, MAX_STEPS), families: tuple[str, ...] = SEEN
) -> Iterator[Question]:
    """An endless stream of questions of one split, the number of steps uniform between two; the same for the same seed."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        yield draw(rng, split, rng.randint(*steps), rng.choice(families))


def draw(rng: random.Random, split: Split, steps: int, family: str) -> Question:
    """One question of `split` with this many steps."""
    while True:
        story, end, reply = BUILDERS[family](rng, steps)
        text = " ".join([*story.text, end])
        if split_of(text) == split:
            break
    chain = story.chain(text)
    return Question(
        question=text,
        chain=chain.text,
        reply=reply(story.value),
        answer=story.value,
        family=family,
        steps=steps,
        values=tuple(story.results),
        condensed=tuple(f" {part}" for part in story.condensed),
        standing=tuple(map(reply, chain.standing)),
        dependence=story.dependence,
        idle=tuple(sentence.text for sentence in story.sentences if not sentence.operations),
    )
