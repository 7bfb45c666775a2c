"""A task from a file or a Hugging Face data set: columns mapped by name, bad rows counted, answers checked by math-verify.

    --data rows.jsonl --columns question=prompt,answer=target
    --data openai/gsm8k:main:train --preset gsm8k
    --data runs/traces/traces.jsonl --preset traces

Rows fall into train, validation and test by the hash of their question (80, 10, 10 %), unless the whole source is one split.
"""

import json
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import load_dataset
from math_verify import parse, verify

from reasoning_net.demo.questions import Split, split_of
from reasoning_net.errors import StageError
from reasoning_net.tasks import Example

logger = logging.getLogger(__name__)
_REPORTED = 5  # bad rows that are shown one by one; the rest are counted


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what. Only question and answer are needed; without a reply the answer is what is learnt.

    Without labels (`answer=`) there is nothing to learn but agreement: `train grpo --shaping empo`.
    """

    question: str = "question"
    answer: str = "answer"
    reply: str | None = None
    family: str | None = None
    level: str | None = None
    messages: str | None = None
    """A column with the whole conversation, instead of `question`."""
    chain: str | None = None
    """What was thought before the reply."""
    correct: str | None = None
    """Rows where this column is false are not trained on: a reply that was generated and is wrong."""
    renamed: str | None = None
    """The question about other people and things: `eval --remap`."""


PRESETS = {
    "gsm8k": Columns("question", "answer", reply="answer"),
    "math": Columns("problem", "solution", reply="solution", family="type", level="level"),
    "math-500": Columns("problem", "answer", reply="solution", family="subject", level="level"),
    "openr1-math": Columns("problem", "answer", reply="solution", family="problem_type"),
    "deepscaler": Columns("problem", "answer", reply="solution"),
    "traces": Columns(
        "question", "answer", "reply", "family", "level", messages="messages", chain="reasoning", correct="correct"
    ),
}


def parse_columns(preset: str | None, columns: str) -> Columns:
    """The columns of a preset, with `name=column,…` on top."""
    if preset is not None and preset not in PRESETS:
        raise StageError(f"There is no preset {preset!r}. There are: {', '.join(PRESETS)}.")
    chosen = PRESETS[preset] if preset else Columns()
    given = dict(part.split("=", 1) for part in columns.split(",") if "=" in part)
    known = set(Columns.__dataclass_fields__)
    if set(given) - known:
        raise StageError(f"--columns maps {', '.join(sorted(known))}; not {', '.join(sorted(set(given) - known))}.")
    return replace(chosen, **given)


class DataTask:
    """Questions that are rows of a file or a data set."""

    def __init__(self, source: str, columns: Columns, whole: bool = False) -> None:
        self._examples: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
        self.bad_rows = 0
        for number, row in _rows(source):
            try:
                if isinstance(row, Exception):
                    raise row
                example, keep = _example(row, columns)
            except (ValueError, KeyError, TypeError) as error:
                self.bad_rows += 1
                if self.bad_rows <= _REPORTED:
                    logger.warning("%s, row %d is left out: %s", source, number, _reason(error, row))
                continue
            if not keep:
                continue
            question = example.messages[-1]["content"]
            for split in self._examples if whole else (split_of(question),):
                self._examples[split].append(example)
        if self.bad_rows:
            logger.warning("%s: %d bad rows are left out.", source, self.bad_rows)
        if not any(self._examples.values()):
            raise StageError(f"{source} has no usable row. Are the columns right? They are mapped as {columns}.")
        if whole:
            logger.warning("%s: with --whole the same rows train, validate and test.", source)
        self.levels = max(example.level for examples in self._examples.values() for example in examples)

    def examples(self, seed: int, split: Split, level: int | None = None) -> Iterator[Example]:
        """Rows in random order: over and over for training, else each once. Where a level has none, those below it."""
        rows = self._examples[split]
        if level is not None:
            rows = [e for e in rows if e.level in (0, level)] or [e for e in rows if e.level < level]
        rng = random.Random(f"{split}-{seed}")
        while True:
            yield from self._shuffled(rows, split, rng)
            if split != "train":
                return

    def keep(self, split: Split, keeps: Callable[[Sequence[Example]], list[bool]]) -> tuple[int, int]:
        """Leave out the other rows of a split; how many there were and are left. Raises `StageError` where none is."""
        rows = self._examples[split]
        self._examples[split] = [row for row, kept in zip(rows, keeps(rows), strict=True) if kept]
        if not self._examples[split]:
            raise StageError(f"None of the {len(rows)} rows of the {split} split is left.")
        return len(rows), len(self._examples[split])

    def once(self, seed: int, split: Split) -> Iterator[Example]:
        yield from self._shuffled(self._examples[split], split, random.Random(f"{split}-{seed}"))

    def size(self, split: Split) -> int:
        return len(self._examples[split])

    @staticmethod
    def _shuffled(rows: list[Example], split: Split, rng: random.Random) -> list[Example]:
        if not rows:
            raise StageError(f"No row of the data falls into the {split} split. Give more rows, or use --whole.")
        return rng.sample(rows, len(rows))

    def final_answer(self, reply: str) -> str | None:
        parsed = _parse(reply)
        return str(parsed[-1]) if parsed else None

    def is_correct(self, reply: str, answer: str) -> bool:
        """Mathematical equality, as math-verify sees it."""
        return verify(_parse(answer), _parse(reply), timeout_seconds=_time_limit())

    def renamed(self, example: Example) -> Example:
        if not example.renamed:
            raise StageError("The data has no question about other people and things: name its column, --columns renamed=….")
        return example.asking(example.renamed)

    def reordered(self, example: Example, rng: random.Random) -> Example:  # noqa: ARG002
        raise StageError("Only the demo's questions say which of their sentences may stand elsewhere.")


def _parse(text: str) -> list[Any]:
    return parse(text, parsing_timeout=_time_limit())


def _time_limit() -> int | None:
    """Seconds for math-verify; none outside the main thread, because its limit is a signal."""
    return 5 if threading.current_thread() is threading.main_thread() else None


def _rows(source: str) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """(row number from 1, row or what is wrong with it)."""
    path = Path(source)
    if path.suffix == ".jsonl" and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    yield number, row if isinstance(row, dict) else ValueError("not a JSON object")
                except json.JSONDecodeError as error:
                    yield number, error
    elif path.suffix in (".jsonl", ".parquet") and not path.is_file():
        raise StageError(f"There is no file {source}.")
    else:
        name, _, rest = source.partition(":")
        config, _, split = rest.rpartition(":")
        try:
            if path.suffix == ".parquet":
                rows = load_dataset("parquet", data_files=source, split="train")
            else:
                rows = load_dataset(name, config or None, split=split or "train")
        except Exception as error:
            raise StageError(
                f"The data set {source!r} cannot be loaded ({error}). "
                "Give a .jsonl or .parquet file, or owner/name[:config]:split."
            ) from error
        yield from enumerate(rows, 1)


def _example(row: dict[str, Any], columns: Columns) -> tuple[Example, bool]:
    """The row as an example, and whether it may be used."""
    messages = row.get(columns.messages) if columns.messages else None
    if messages is None:
        messages = [{"role": "user", "content": _text(row, columns.question)}]
    answer = _gold(_text(row, columns.answer)) if columns.answer else ""
    reply = _text(row, columns.reply) if columns.reply and row.get(columns.reply) else answer
    level = re.sub(r"\D", "", str(row.get(columns.level) or "")) if columns.level else ""
    family = str(row.get(columns.family) or "") if columns.family else ""
    correct = row.get(columns.correct, True) if columns.correct else True
    milestones = tuple(map(str, row.get("milestones") or ()))
    chain = str(row.get(columns.chain) or "") if columns.chain else ""
    renamed = str(row.get(columns.renamed) or "") if columns.renamed else ""
    example = Example(messages, _clean(reply), answer, int(level or 1), family, milestones, chain=chain, renamed=renamed)
    return example, bool(correct)


def _text(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if not str("" if value is None else value).strip():
        raise ValueError(f"column {column!r} is empty")
    return str(value).strip()


def _clean(reply: str) -> str:
    """Without GSM8K's calculator marks."""
    return re.sub(r"<<[^>]*>>", "", reply)


def _gold(answer: str) -> str:
    """The answer as math-verify reads it: what follows GSM8K's ####; bare LaTeX between dollars."""
    answer = answer.rpartition("####")[2].strip()
    is_marked = "\\boxed" in answer or "$" in answer or answer.replace(",", "").lstrip("-").isdigit()
    return answer if is_marked else f"${answer}$"


def _reason(error: Exception, row: dict[str, Any] | Exception) -> str:
    if isinstance(error, KeyError) and isinstance(row, dict):
        return f"it has no column {error}; it has {', '.join(sorted(row)) or 'none'}"
    return str(error)
