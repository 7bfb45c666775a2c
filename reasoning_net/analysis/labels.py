"""Label the steps of chains: which chains say anything, which of their steps are shortcuts, and the causal search on the rest.

A shortcut is a step that suffices alone, or that states the answer (2604.18307): with it a chain says nothing of the others. A
chain that restates its running value in each line is all shortcuts at its end, and what is left of it does not suffice.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reasoning_net.analysis.causal import Kept, Verdict, run, search
from reasoning_net.analysis.judge import Influence, Judge, JudgeOptions, Subject
from reasoning_net.errors import StageError
from reasoning_net.stages.traces import Trace, append_batches
from reasoning_net.step_probe import StepReader, joined
from reasoning_net.tasks import Task

Shortcuts = Literal["all", "stated"]
SHORTCUT = "shortcut"
WRONG, EASY, INSUFFICIENT = "the chain is wrong", "right without a chain", "not sufficient without its shortcuts"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A chain in steps, and what each of them is: `causal.Label`, or a shortcut."""

    trace: int
    """Its line in traces.jsonl, from 0."""
    family: str
    level: int
    steps: tuple[str, ...]
    labels: tuple[str, ...] = ()
    excluded: str = ""
    """Why there are no labels."""


def read_labels(path: Path) -> list[Labelled]:
    with path.open() as lines:
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [Labelled(**one | {name: tuple(one[name]) for name in ("steps", "labels")}) for one in found]


class Labeller:
    def __init__(self, reader: StepReader, task: Task, options: JudgeOptions, shortcuts: Shortcuts, seed: int) -> None:
        self._reader, self._task, self._options, self._shortcuts, self._seed = reader, task, options, shortcuts, seed

    def write(self, traces: Sequence[Trace], path: Path, batch_size: int) -> list[Labelled]:
        """Label what is not in the file yet; all of it."""

        def label(at: int, batch: Sequence[Trace]) -> Iterable[dict[str, Any]]:
            return map(asdict, self.label(at, batch))

        append_batches(path, traces, batch_size, lambda: label, "labels", "chain")
        found = read_labels(path)[: len(traces)]
        if any(one.steps != self._reader.steps(trace.reasoning) for one, trace in zip(found, traces, strict=True)):
            raise StageError(f"{path} was made of other traces, or of other steps. Give another --output.")
        return found

    def label(self, first: int, traces: Sequence[Trace]) -> list[Labelled]:
        """A batch of traces, which is `first` behind the beginning of the file."""
        reader = self._reader
        subjects = [
            Subject(reader.base.prompt_ids(trace.messages), reader.steps(trace.reasoning), trace.answer) for trace in traces
        ]
        excluded = [
            "" if trace.correct and one.steps else WRONG for one, trace in zip(subjects, traces, strict=True)
        ]  # fmt: skip
        judge = Judge(reader, self._task, self._options, subjects, self._seed + first)
        for at, easy in enumerate(judge.easy()):
            excluded[at] = excluded[at] or (EASY if easy else "")
        wanted = [at for at, why in enumerate(excluded) if not why]
        labels = dict(zip(wanted, self._labels(judge, subjects, wanted), strict=True)) if wanted else {}
        return [
            Labelled(
                first + at, trace.family, trace.level, one.steps, tuple(labels.get(at) or ()),
                excluded[at] or ("" if labels[at] else INSUFFICIENT),
            )
            for at, (one, trace) in enumerate(zip(subjects, traces, strict=True))
        ]  # fmt: skip

    def _labels(self, judge: Judge, subjects: Sequence[Subject], wanted: Sequence[int]) -> list[list[str] | None]:
        """Of the steps of these subjects; None where what is no shortcut does not suffice."""
        chains = [subjects[at] for at in wanted]
        scales = judge.scales(wanted)
        alone = judge.alone(wanted) if self._shortcuts == "all" else [[False] * len(one.steps) for one in chains]
        rest = [
            [at for at, step in enumerate(one.steps) if not suffices[at] and not self.states_answer(step, one.answer)]
            for one, suffices in zip(chains, alone, strict=True)
        ]
        left = [
            Subject(one.prompt, tuple(one.steps[at] for at in of), one.answer) for one, of in zip(chains, rest, strict=True)
        ]

        def verdicts(asked: Sequence[tuple[int, Kept]]) -> list[Verdict]:
            texts = [(wanted[of], joined(left[of].steps, kept)) for of, kept in asked]
            return judge.verdicts(texts, [scales[of] for of, _ in asked])

        searches = [search(len(one.steps), Influence(self._reader, one)) for one in left]
        found = run(searches, verdicts)
        return [
            None if labels is None else _placed(len(one.steps), of, labels)
            for one, of, labels in zip(chains, rest, found, strict=True)
        ]

    def states_answer(self, step: str, answer: str) -> bool:
        return bool(re.search(r"\banswer\b", step.lower())) and self._task.is_correct(step, answer)


def _placed(number: int, places: Sequence[int], labels: Sequence[str]) -> list[str]:
    """Labels of steps at these places among all, the others being shortcuts."""
    of = dict(zip(places, labels, strict=True))
    return [of.get(at, SHORTCUT) for at in range(number)]
