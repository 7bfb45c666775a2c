"""The same questions in other words, and in another order: what `eval --remap` and `eval --orders` ask.

Questions about other people and things tell whether a mode has learnt the sums, or the words ("symbol remapping"). The entropy
of the answers to several orders of one question is a confidence ("consistency under re-ordering"); it stands beside that of as
many sampled answers.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reasoning_net.client import Server, gather
from reasoning_net.errors import StageError
from reasoning_net.tables import table
from reasoning_net.tasks import Example, Task
from router.figures import auroc, known

_TEMPERATURE = 0.6  # of sampled answers, as the router's calibration has them
Figures = dict[str, dict[str, float | None]]
"""By arm; None where there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """How the answers to one question differ, in nats."""

    right: bool
    orders: float
    """Entropy of the greedy answers to several orders of it."""
    samples: float
    """Entropy of as many sampled answers to it as it stands."""


def remapped(plain: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> Figures:
    """By arm: accuracy on the questions and on those about others, and the paired difference with its standard error."""
    figures: Figures = {}
    for arm, shares in plain.items():
        lost = [before - after for before, after in zip(shares, other[arm], strict=True)]
        error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
        values = {"as they are": shares, "about others": other[arm], "lost": lost}
        figures[arm] = {**{name: round(statistics.fmean(of), 4) for name, of in values.items()}, "error": round(error, 4)}
    return figures


def remapped_table(figures: Figures) -> str:
    rows = (
        (arm, f"{of['as they are']:.3f}", f"{of['about others']:.3f}", f"{of['lost']:+.3f} ± {of['error']:.3f}")
        for arm, of in figures.items()
    )
    return table(("pass@1 by mode", "questions as they are", "about other people and things", "lost"), rows)


def orders(task: Task, examples: Sequence[Example], number: int, seed: int) -> list[list[Example]]:
    """Of each question that has any, as many different orders, itself the first; questions that have fewer are left out."""
    found = []
    for at, example in enumerate(examples):
        rng, different = random.Random(f"{seed}-{at}"), {example.messages[-1]["content"]: example}
        for _ in range(8 * number):
            other = task.reordered(example, rng)
            different.setdefault(other.messages[-1]["content"], other)
        if len(different) >= number:
            found.append(list(different.values())[:number])
    if not found:
        raise StageError(f"None of the questions has {number} orders: ask more of them, or for fewer --orders.")
    return found


async def consistencies(
    server: Server,
    task: Task,
    bodies: Mapping[str, Mapping[str, Any]],
    asked: Sequence[Sequence[Example]],
    limits: Mapping[str, Any],
) -> dict[str, list[Consistency]]:
    """By arm, whose fields of a request are `bodies`; `limits` are those of every request."""

    async def ask(fields: Mapping[str, Any], group: Sequence[Example]) -> Consistency:
        said = [await server.complete(one.messages, **fields, **limits, temperature=0) for one in group]
        sampled = await server.complete(group[0].messages, **fields, **limits, temperature=_TEMPERATURE, n=len(group), seed=0)
        right = task.is_correct(said[0].replies[0], group[0].answer)
        return Consistency(
            right,
            entropy([task.final_answer(answer.replies[0]) for answer in said]),
            entropy([task.final_answer(reply) for reply in sampled.replies]),
        )

    return {arm: await gather((ask(fields, group) for group in asked), f"{arm}, orders") for arm, fields in bodies.items()}


def entropy(answers: Sequence[str | None]) -> float:
    """Of the different answers among them, in nats; each one that is none is for itself."""
    counts = Counter(answer if answer is not None else at for at, answer in enumerate(answers))
    return -sum(count / len(answers) * math.log(count / len(answers)) for count in counts.values())


def summarise(found: Mapping[str, Sequence[Consistency]]) -> Figures:
    def area(of: Sequence[Consistency], entropy: Callable[[Consistency], float]) -> float | None:
        area = auroc(torch.tensor([-entropy(one) for one in of]), torch.tensor([float(one.right) for one in of]))
        return known(area)

    return {
        arm: {
            "questions": len(of),
            "right": round(statistics.fmean(one.right for one in of), 4),
            "one answer to all orders": round(statistics.fmean(one.orders == 0 for one in of), 4),
            "AUROC, orders": area(of, lambda one: one.orders),
            "AUROC, samples": area(of, lambda one: one.samples),
        }
        for arm, of in found.items()
    }


def consistency_table(figures: Figures) -> str:
    names = list(next(iter(figures.values())))
    rows = ((arm, *("" if value is None else value for value in of.values())) for arm, of in figures.items())
    return table(("by mode", *names), rows)
