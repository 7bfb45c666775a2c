"""Which steps a chain neglects: those that the probe calls important, and that little of what follows is built on.

A diagnosis of wrong chains, beside right ones (2604.18307 has the two parts, and does not put them together). How much a step
bears on what follows is the mean of its influence on the later steps and on the reply.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from reasoning_net.analysis.judge import Influence, Subject
from reasoning_net.stages.traces import Trace
from reasoning_net.step_probe import StepProbe, StepReader

_IMPORTANT = 0.5


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Of one chain, by step: P(important), and how much of the influence on what follows is its, 1 being an equal share."""

    trace: int
    correct: bool
    steps: tuple[str, ...]
    scores: list[float]
    bears: list[float]

    @property
    def important(self) -> list[int]:
        return [at for at, score in enumerate(self.scores) if score >= _IMPORTANT]

    @property
    def neglected(self) -> list[int]:
        """Important, and with less than half of an equal share."""
        return [at for at in self.important if self.bears[at] < 0.5]

    @property
    def correlation(self) -> float:
        """Of the ranks of scores and influence."""
        if len(set(self.scores)) < 2 or len(set(self.bears)) < 2:
            return math.nan
        ranks = (torch.tensor(values).argsort().argsort().tolist() for values in (self.scores, self.bears))
        return statistics.correlation(*ranks)


def diagnose(
    reader: StepReader, probe: StepProbe, closing: str, traces: Sequence[tuple[int, Trace]]
) -> list[Diagnosis]:  # fmt: skip
    """Of traces and their numbers. `closing`: what stands between a chain and its reply."""
    found = []
    for number, trace in tqdm(traces, desc="neglected steps", unit="chain"):
        prompt, steps = reader.base.prompt_ids(trace.messages), reader.steps(trace.reasoning)
        on = Influence(reader, Subject(prompt, (*steps, f"{closing}{trace.reply}"), trace.answer))
        scores = [round(score, 4) for score in probe.scores(reader.states(prompt, steps))]
        found.append(Diagnosis(number, trace.correct, steps, scores, _shares(on, len(steps))))
    return found


def _shares(influence: Influence, number: int) -> list[float]:
    """Each step's mean influence on what follows, the reply being last, by the mean over all steps."""
    columns = [influence(step).tolist() for step in range(1, number + 1)]
    means = [statistics.fmean(column[at] for column in columns[at:]) for at in range(number)]
    whole = statistics.fmean(means) or 1.0
    return [round(mean / whole, 4) for mean in means]


def summarise(found: Sequence[Diagnosis]) -> dict[str, Any]:
    """For right and for wrong chains; and the neglected steps of wrong ones."""
    figures: dict[str, Any] = {}
    for name, correct in (("right", True), ("wrong", False)):
        of = [one for one in found if one.correct is correct]
        correlations = [one.correlation for one in of if not math.isnan(one.correlation)]
        number = sum(len(one.important) for one in of)
        figures[name] = {
            "chains": len(of),
            "important steps": round(number / len(of), 2) if of else None,
            "neglected": round(sum(len(one.neglected) for one in of) / number, 4) if number else None,
            "rank correlation": round(statistics.fmean(correlations), 4) if correlations else None,
        }
    figures["steps that wrong chains neglect"] = [
        {"trace": one.trace, "step": one.steps[at].strip(), "score": one.scores[at], "bears": one.bears[at]}
        for one in found
        if not one.correct
        for at in one.neglected
    ]
    return figures
