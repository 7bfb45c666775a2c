"""Answers from a chain's most important steps alone, beside others that are chosen by chance, or as the last ones.

A curve that 2604.18307 does not draw: its authors do not compress chains.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from reasoning_net.analysis.judge import Judge, JudgeOptions, Subject
from reasoning_net.step_probe import StepReader, joined, most_important
from reasoning_net.tasks import Task

_BATCH = 32
Scores = Sequence[Sequence[float]]
"""Of each step of each chain."""
Curve = dict[str, dict[float, list[bool]]]
"""By how steps are chosen, and the share that is kept: which answers are right, in the order of the chains."""


def curve(
    reader: StepReader, task: Task, subjects: Sequence[Subject], scores: Mapping[str, Scores], shares: Sequence[float],
    max_tokens: int,
) -> Curve:  # fmt: skip
    """Greedy answers from the steps of the highest scores."""
    found: Curve = {name: {share: [] for share in shares} for name in scores}
    options = JudgeOptions(temperature=0.0, max_tokens=max_tokens)
    with tqdm(total=len(subjects), desc="compressed chains", unit="chain") as progress:
        for at in range(0, len(subjects), _BATCH):
            batch = subjects[at : at + _BATCH]
            judge = Judge(reader, task, options, batch, seed=0)
            for name, of in scores.items():
                for share in shares:
                    kept = [most_important(one, share) for one in of[at : at + _BATCH]]
                    texts = [(i, joined(one.steps, steps)) for i, (one, steps) in enumerate(zip(batch, kept, strict=True))]
                    found[name][share] += [right > 0 for right, _ in judge.answers(texts)]
            progress.update(len(batch))
    return found


def share_and_error(right: Sequence[bool]) -> tuple[float, float]:
    share = statistics.fmean(right)
    return share, math.sqrt(share * (1 - share) / len(right))
