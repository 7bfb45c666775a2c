"""What is in a mixture, and when a chain goes from mixtures to text: the rules, on made-up distributions."""

import torch

from router.soft import MAX_PARTS, SoftThinking
from server.engine.work import Mix
from server.engine.worker.mixtures import Knobs, State, follow, likeliest

CPU = torch.device("cpu")


def knobs(*chains: SoftThinking) -> Knobs:
    return Knobs.of([Knobs.one(Mix("key", 0, 1, 2, 0, {}), soft, CPU) for soft in chains])


def test_a_mixture_has_the_likeliest_tokens_within_every_bound() -> None:
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    settings = [
        {"k": 3, "top_p": 1.0, "min_p": 0.0}, {"k": 6, "top_p": 0.65, "min_p": 0.0}, {"k": 6, "top_p": 1.0, "min_p": 0.3},
        {"k": 1},
    ]  # fmt: skip
    chains = knobs(*(SoftThinking(**of) for of in settings))
    ids, log_weights = likeliest(p.log().expand(4, -1), chains)
    assert ids.shape[1] <= MAX_PARTS
    assert ids[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (log_weights > -torch.inf).sum(1).tolist() == [3, 2, 3, 1]
    torch.testing.assert_close(log_weights.softmax(-1)[0, :3], p[:3] / p[:3].sum())


def walk(soft: SoftThinking, entropies: list[float]) -> tuple[list[bool], int | None]:
    """(whether each step is in mixtures, the step that ends thinking)."""
    state, chain, in_mixtures = State.of([State.first(CPU)]), knobs(soft), []
    for step, entropy in enumerate(entropies):
        _, _, ends = follow(state, chain, torch.tensor([entropy]))
        in_mixtures.append(bool(state.soft))
        if bool(ends):
            return in_mixtures, step
    return in_mixtures, None


def test_lead_returns_to_text_when_the_entropy_falls_below_the_last_switchs_and_leaves_it_after_the_window() -> None:
    soft = SoftThinking(switch="lead", window=2)
    steps, end = walk(soft, [1.0, 1.2, 0.5, 0.9, 0.9, 0.9, 0.8])
    # 0.5 < 1.0 is a return; 0.9 > 0.5, but only after two tokens in text; then 0.8 < 0.9.
    assert steps == [True, True, False, False, True, True, False]
    assert end is None


def test_lead_ends_thinking_at_one_return_too_many() -> None:
    soft = SoftThinking(switch="lead", window=1, max_returns=1)
    steps, end = walk(soft, [1.0, 0.5, 0.9, 0.4, 0.9])
    assert steps == [True, False, True, False]
    assert end == 3


def test_without_a_switch_all_is_mixed_and_cold_steps_in_a_row_end_it() -> None:
    steps, end = walk(SoftThinking(cold_steps=2, cold_entropy=0.1), [0.05, 0.5, 0.05, 0.05, 0.05])
    assert steps == [True] * 4
    assert end == 3
    assert walk(SoftThinking(), [0.0] * 9)[1] is None
