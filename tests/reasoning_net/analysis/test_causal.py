"""The search for important steps, on chains whose answers are known."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reasoning_net.analysis.causal import Kept, Verdict, predecessors, run, search


def evenly(step: int) -> Tensor:
    return torch.ones(step)


def judge(*rules: Callable[[set[int]], bool]) -> Callable[[Sequence[tuple[int, Kept]]], list[Verdict]]:
    """Of chains whose parts suffice by a rule, and are all attainable."""
    return lambda asked: [Verdict(rules[number](set(kept)), True) for number, kept in asked]


def test_important_is_what_the_answer_needs_and_the_rest_of_the_prefix_is_not() -> None:
    (labels,) = run([search(6, evenly)], judge({1, 3}.issubset))
    assert labels
    assert [at for at, label in enumerate(labels) if label == "important"] == [1, 3]
    assert labels[4:] == ["after", "after"]
    assert {labels[0], labels[2]} <= {"removable", "unlabelled"}


def test_a_step_that_is_right_by_chance_does_not_end_the_prefix() -> None:
    def suffices(kept: set[int]) -> bool:
        return max(kept) == 0 or 4 in kept  # the first value happens to be the answer

    assert run([search(5, evenly)], judge(suffices)) == [["removable"] * 4 + ["important"]]


def test_influence_says_what_is_kept_first() -> None:
    def influence(step: int) -> Tensor:
        return torch.tensor([0.0, 9.0, 0.5, 0.5])[:step]

    assert predecessors(influence, 4, 0.5) == (0, 1, 4), "and what that one rests on"
    assert predecessors(influence, 4, 0.94) == (0, 1, 2, 4)
    (labels,) = run([search(5, influence)], judge({1, 4}.issubset))
    assert labels == ["unlabelled", "important", "removable", "removable", "important"]


def test_a_part_that_is_not_attainable_is_not_enough() -> None:
    def both(asked: Sequence[tuple[int, Kept]]) -> list[Verdict]:
        return [Verdict(3 in kept, 0 in kept) for _, kept in asked]

    (labels,) = run([search(4, evenly)], both)
    assert labels
    assert [at for at, label in enumerate(labels) if label == "important"] == [0, 3]


def test_chains_are_looked_into_side_by_side() -> None:
    asked = list[int]()

    def verdicts(parts: Sequence[tuple[int, Kept]]) -> list[Verdict]:
        asked.append(len(parts))
        return judge({0}.issubset, {2}.issubset, lambda _: False)(parts)

    first, second, third = run([search(1, evenly), search(3, evenly), search(3, evenly)], verdicts)
    assert (first, second, third) == (["important"], ["removable", "removable", "important"], None)
    assert asked[0] == 3
    assert run([search(0, evenly)], verdicts) == [None]
