"""Probes of steps, on steps whose importance is known."""

import torch

from reasoning_net.analysis.step_features import (
    ACTIVATIONS,
    CONTEXT_FREE,
    KNOWN,
    LINEAR,
    OTHER,
    POSITION,
    SURFACE,
    TF_IDF,
    context_free,
    surface,
)
from reasoning_net.analysis.step_probe import ALL_OTHERS, AS_THEY_COME, EQUAL_POSITION, SETTINGS, Rows, compare, held_out
from reasoning_net.frozen import FrozenBase
from reasoning_net.step_probe import StepReader

_CHAINS, _STEPS = 100, 8


def rows(late: float) -> Rows:
    """Important is what is late, with a share `late` of all chains; else what the product of two activations says."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_CHAINS * _STEPS, 6, generator=generator)
    places = (torch.arange(_STEPS) / (_STEPS - 1)).repeat(_CHAINS)
    is_late = (torch.arange(_CHAINS) < late * _CHAINS).repeat_interleave(_STEPS)
    important = torch.where(is_late, places > 0.5, states[:, 0] * states[:, 1] > 0).float()
    states[:, 2] = torch.where(is_late, 1.0, -1.0)
    states[:, 3] = places
    features = {
        ACTIVATIONS: states, OTHER: states, CONTEXT_FREE: torch.zeros_like(states), SURFACE: states[:, 3:], KNOWN: states[:, 4:]
    }  # fmt: skip
    chains = torch.arange(_CHAINS).repeat_interleave(_STEPS)
    tokens = [[int(value)] for value in important]
    return Rows(chains, ["a", "b"] * (_CHAINS * _STEPS // 2), places, important, 1 - important, tokens, features)


def test_activations_tell_what_position_does_not() -> None:
    figures = compare(rows(late=0.0), seeds=1)[EQUAL_POSITION]
    accuracy = {kind: run["accuracy"] for kind, (run,) in figures["by features"].items()}
    assert accuracy[ACTIVATIONS] > 0.75
    assert accuracy[TF_IDF] == 1.0, "the tokens are the labels"
    assert max(accuracy[LINEAR], accuracy[POSITION], accuracy[CONTEXT_FREE]) < 0.65
    assert figures["agreement"] == [1.0]


def test_being_late_tells_nothing_within_equal_position() -> None:
    figures = compare(rows(late=0.8), seeds=1)
    by_position = {setting: figures[setting]["by features"][POSITION][0]["accuracy"] for setting in SETTINGS}
    assert by_position[ALL_OTHERS] == by_position[AS_THEY_COME], "all others are removable here"
    assert by_position[AS_THEY_COME] > 0.75
    assert by_position[EQUAL_POSITION] < 0.65
    assert {"accuracy", "a", "b"} == set(figures[AS_THEY_COME]["by features"][ACTIVATIONS][0])


def test_a_chain_is_seen_as_a_whole_or_not_at_all() -> None:
    chains = torch.arange(10).repeat_interleave(3)
    held = held_out(chains, seed=1)
    assert [int(held[chains == chain].sum()) for chain in range(10)].count(3) == 2
    assert int(held.sum()) == 6


def test_a_step_alone_is_read_without_its_chain(base: FrozenBase) -> None:
    reader = StepReader(base, base.layout().token_ids(base.tokenizer), sentences=True)
    alone = context_free(reader, ["Ann has 5.", " Wait, is that right? 5 + 3 = 8.", "Ann has 5."])
    assert list(alone) == ["Ann has 5.", "Wait, is that right? 5 + 3 = 8."]
    torch.testing.assert_close(alone["Ann has 5."], reader.states((), ["Ann has 5."])[0], atol=1e-3, rtol=1e-3)


def test_what_the_plain_baseline_reads() -> None:
    first, last = surface(["Ann has 5.", " Wait, is that right? 5 + 3 = 8."]).tolist()
    assert first[0] == 0
    assert last[0] == 1
    assert (first[3], last[3]) == (0, 1), "steps before it: the first that is known while a chain is written"
    assert first[6:8] == [1, 0], "numbers, operators"
    assert last[6:8] == [3, 2]
