"""A task is where questions come from and how replies are graded.

Training and evaluation see tasks only: the demo's generator is one, a data set on disk is another.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from reasoning_net.demo.conversations import conversation
from reasoning_net.demo.questions import MAX_STEPS, Split, final_number, questions


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised example: the conversation X and the reply Y. The chain R is not needed."""

    messages: list[dict[str, str]]
    reply: str
    answer: str
    """What `Task.is_correct` compares a reply with; empty where there is nothing to grade."""
    level: int
    """Difficulty, from 1 to the task's `levels`: what a curriculum raises. 0: not part of it."""
    family: str
    milestones: tuple[str, ...] = ()
    """Intermediate results of the chain in order, where they are known: an auxiliary loss may use them in training."""


class Task(Protocol):
    levels: int

    def examples(self, seed: int, split: Split, max_level: int | None = None) -> Iterator[Example]:
        """An endless stream, the same for the same seed."""
        ...

    def is_correct(self, reply: str, answer: str) -> bool: ...


class DemoTask:
    """The demo's word problems; in training one in twenty conversations is small talk."""

    levels = MAX_STEPS

    def examples(self, seed: int, split: Split, max_level: int | None = None) -> Iterator[Example]:
        if split != "train":
            for question in questions(seed, split, max_steps=max_level or MAX_STEPS):
                messages = [{"role": "user", "content": question.question}]
                yield Example(
                    messages, question.reply, str(question.answer), question.steps, question.family, _texts(question.values)
                )
            return
        rng = random.Random(f"{split}-{seed}-{max_level}")
        while True:
            talk = conversation(rng, split, max_level or MAX_STEPS)
            asked = talk.question
            answer, level, family = (str(asked.answer), asked.steps, asked.family) if asked else ("", 0, "small talk")
            yield Example(talk.messages, talk.reply, answer, level, family, _texts(asked.values) if asked else ())

    def is_correct(self, reply: str, answer: str) -> bool:
        number = final_number(reply)
        return number is not None and str(number) == answer


def _texts(values: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f" {value}" for value in values)


TASKS: dict[str, type[Task]] = {"demo": DemoTask}
