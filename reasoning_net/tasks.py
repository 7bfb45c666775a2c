"""A task is where questions come from and how replies are graded.

Training and evaluation see tasks only: the demo's generator is one, a data set on disk is another.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

from cyclopts import Parameter

from reasoning_net.demo.conversations import conversation
from reasoning_net.demo.questions import FAMILIES, MAX_STEPS, SEEN, Question, Split, final_number, questions
from reasoning_net.demo.renamed import renamed, reordered
from reasoning_net.demo.story import Dependence
from reasoning_net.errors import StageError

LEARNT = f"demo:{','.join(SEEN)}"
"""What networks are trained on. Routers are fitted, and everything is measured, on all families: a server meets questions that
its network was not trained for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised example: the conversation X and the reply Y."""

    messages: list[dict[str, str]]
    reply: str
    answer: str
    """What `Task.is_correct` compares a reply with; empty where there is nothing to grade."""
    level: int
    """Difficulty, from 1 to the task's `levels`: what a curriculum raises. 0: not part of it."""
    family: str
    milestones: tuple[str, ...] = ()
    """Intermediate results of the chain in order, where they are known: an auxiliary loss may use them in training."""
    condensed: tuple[str, ...] = ()
    """The chain's steps, where they are known: the first values, then operator, operand and result of each."""
    chain: str = ""
    """R, where it is known: what the base thinks, or thought, in text."""
    dependence: Dependence | None = None
    """Which lines of the chain, and which sentences, an answer rests on, where it is known."""
    idle: tuple[str, ...] = ()
    """Sentences of the question that change nothing, where they are known."""
    renamed: str = ""
    """The question about other people and things, where the data has it."""

    def asking(self, question: str) -> "Example":
        """The same with another question in its last turn."""
        *before, last = self.messages
        return replace(self, messages=[*before, last | {"content": question}])


class Task(Protocol):
    levels: int

    def examples(self, seed: int, split: Split, level: int | None = None) -> Iterator[Example]:
        """A stream that is the same for the same seed, endless for training; of one level, and what has none, or of all."""
        ...

    def once(self, seed: int, split: Split) -> Iterator[Example]:
        """Each question of a split a single time, in the order of `examples`; endless where questions are made."""
        ...

    def size(self, split: Split) -> int | None:
        """How many questions a split has; None where they are made."""
        ...

    def final_answer(self, reply: str) -> str | None:
        """What the reply says the answer is, in a form that can be compared; None when it says nothing."""
        ...

    def is_correct(self, reply: str, answer: str) -> bool: ...

    def renamed(self, example: Example) -> Example:
        """The question about other people and things. Raises `StageError` where there is no way to do that."""
        ...

    def reordered(self, example: Example, rng: random.Random) -> Example:
        """The question with sentences that change nothing at other places. Raises `StageError`, too."""
        ...


def with_answers(task: Task, seed: int, split: Split, number: int) -> list[Example]:
    """The first questions of a split that have an answer. Raises `StageError` where there are none."""
    found = list(itertools.islice((example for example in task.once(seed, split) if example.answer), number))
    if not found:
        raise StageError(f"There are no {split} questions with an answer.")
    return found


class DemoTask:
    """The demo's word problems; in training one in twenty conversations is small talk."""

    def __init__(self, families: tuple[str, ...] = FAMILIES, levels: int = MAX_STEPS) -> None:
        """`levels`: the most steps of a question."""
        unknown = set(families) - set(FAMILIES)
        if unknown:
            raise StageError(f"The demo has no family {', '.join(sorted(unknown))}. It has {', '.join(FAMILIES)}.")
        if not 0 < levels <= MAX_STEPS:
            raise StageError(f"The demo's questions have 1 to {MAX_STEPS} steps, not {levels}.")
        self._families, self.levels = families, levels

    def examples(self, seed: int, split: Split, level: int | None = None) -> Iterator[Example]:
        steps = (level, level) if level else (1, self.levels)
        if split != "train":
            for question in questions(seed, split, steps=steps, families=self._families):
                yield _example([{"role": "user", "content": question.question}], question)
            return
        rng = random.Random(f"{split}-{seed}-{level}")
        while True:
            talk = conversation(rng, split, steps, self._families)
            yield (
                _example(talk.messages, talk.question)
                if talk.question
                else Example(talk.messages, talk.reply, "", 0, "small talk", chain=talk.chain)
            )

    def once(self, seed: int, split: Split) -> Iterator[Example]:
        return self.examples(seed, split)

    def size(self, split: Split) -> int | None:  # noqa: ARG002
        return None

    def final_answer(self, reply: str) -> str | None:
        number = final_number(reply)
        return None if number is None else str(number)

    def is_correct(self, reply: str, answer: str) -> bool:
        return self.final_answer(reply) == answer

    def renamed(self, example: Example) -> Example:
        return example.asking(renamed(example.messages[-1]["content"]))

    def reordered(self, example: Example, rng: random.Random) -> Example:
        return example.asking(reordered(example.messages[-1]["content"], example.idle, rng))


def draw(stream: Iterator[Example], number: int, fits: Callable[[Example], bool]) -> list[Example]:
    """The next examples that fit. Raises `StageError` where hardly any does."""
    seen = itertools.islice(stream, 1000 * number)
    if len(examples := list(itertools.islice(filter(fits, seen), number))) < number:
        raise StageError(
            "Hardly any question is short enough and has an answer. Raise --max-prompt-tokens, or learn without answers: "
            "--shaping empo."
        )
    return examples


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """Which questions a stage works on: `demo`, some of its families (`demo:counting,riding`), of up to so many steps
    (`demo:counting@4`), or a source of rows."""

    source: Annotated[str, Parameter(name="--data")] = "demo"
    """demo or demo:FAMILY,… (with @STEPS: up to so many), a .jsonl or .parquet file, or owner/name[:config]:split on the
    Hugging Face hub."""
    preset: str | None = None
    """Columns of a known data set: gsm8k, math, math-500, openr1-math, deepscaler, traces."""
    columns: str = ""
    """question=…,answer=…,reply=…,family=…,level=…,renamed=… where no preset fits."""
    whole: bool = False
    """Use every row, instead of the 80/10/10 split by the hash of the question: for rows that nothing was trained on."""

    @property
    def name(self) -> str:
        """For whoever reads a bundle: the source, without the directories of the machine that it lay on."""
        return Path(self.source).name if self.source.endswith((".jsonl", ".parquet")) else self.source

    def load(self) -> Task:
        """Raises `StageError` for a source that cannot be read."""
        name, _, levels = self.source.partition("@")
        if name == "demo" or name.startswith("demo:"):
            if levels and not levels.isdecimal():
                raise StageError(f"--data {self.source}: after @ stands the most steps of a question, a number.")
            families = name.partition(":")[2]
            return DemoTask(tuple(families.split(",")) if families else FAMILIES, int(levels or MAX_STEPS))
        from reasoning_net.data import DataTask, parse_columns

        return DataTask(self.source, parse_columns(self.preset, self.columns), self.whole)


def _example(messages: list[dict[str, str]], asked: Question) -> Example:
    milestones = tuple(f" {value}" for value in asked.values)
    return Example(
        messages, asked.reply, str(asked.answer), asked.steps, asked.family, milestones, asked.condensed, asked.chain,
        dependence=asked.dependence, idle=asked.idle,
    )  # fmt: skip
