"""Patches of vLLM: private blocks, thinking budgets that stay with their request, and what an unknown vLLM is told."""

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.config.reasoning import ReasoningConfig
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from server.engine.errors import ConfigurationError
from server.engine.worker.hooks import check_vllm, expand_batch_to_tokens, mend_thinking_budgets, private_hasher

BLOCK = 4


def chained(request: Any) -> list[bytes]:
    """Hashes of the full blocks that have none yet, each with that of the block before it: as vLLM's hasher does."""
    hashes, previous = [], request.block_hashes[-1] if request.block_hashes else b""
    for at in range(len(request.block_hashes) * BLOCK, len(request.ids) - BLOCK + 1, BLOCK):
        previous = hashlib.sha256(previous + bytes(request.ids[at : at + BLOCK])).digest()
        hashes.append(previous)
    return hashes


def hashes_of(ids: list[int], first: int | None, key: str = "k", known: int = 0) -> list[bytes]:
    """Of a request whose first `known` tokens came before the others."""
    request = SimpleNamespace(ids=ids[:known], block_hashes=[])
    hasher = chained if first is None else private_hasher(chained, first, key)
    request.block_hashes += hasher(request)
    request.ids = ids
    request.block_hashes += hasher(request)
    return request.block_hashes


@pytest.mark.parametrize("known", [0, 6, 12, 20])
def test_blocks_before_the_latents_are_shared_and_those_from_there_on_are_private(known: int) -> None:
    ids = list(range(23))
    plain = hashes_of(ids, None)
    private = hashes_of(ids, 2, known=known)
    assert len(private) == len(plain) == 5
    assert private[:2] == plain[:2]
    assert not set(private[2:]) & set(plain)
    assert private == hashes_of(ids, 2), "the same whenever they are asked for: a preempted request finds its own blocks"
    assert not set(private[2:]) & set(hashes_of(ids, 2, key="another"))


def test_a_budget_ends_with_its_request() -> None:
    """Row 1 of a client's report: A leaves, B moves to A's place, and B's chain was cut at A's budget."""
    mend_thinking_budgets()
    config = ReasoningConfig()
    config._reasoning_start_token_ids, config._reasoning_end_token_ids = [1], [2]
    holder = ThinkingBudgetStateHolder(config, 4, 0, torch.device("cpu"), False)
    with_budget, without = SamplingParams(thinking_token_budget=5), SamplingParams()
    holder.sync_batch(BatchUpdate(2, removed=(), added=[(0, with_budget, [1], []), (1, without, [1], [])], moved=()))
    assert set(holder._state) == {0}
    one_way = (1, 0, MoveDirectionality.UNIDIRECTIONAL)
    holder.sync_batch(BatchUpdate(1, removed=(), added=(), moved=[one_way]))
    assert not holder._state
    holder.sync_batch(BatchUpdate(2, removed=(), added=[(1, with_budget, [1], [])], moved=()))
    holder.sync_batch(BatchUpdate(1, removed=(), added=(), moved=[one_way]))
    assert set(holder._state) == {0}, "a budget moves with its request"


def test_a_value_of_each_request_goes_to_its_drafts() -> None:
    temperatures, ends = torch.tensor([0.6, 0.0, 1.5]), torch.tensor([2, 3, 3])
    expanded = expand_batch_to_tokens(temperatures, ends, 3, replace_from=0, replace_to=1)
    assert expanded.tolist() == pytest.approx([0.6, 0.6, 1.0])
    assert expand_batch_to_tokens(torch.tensor([5, 6, 7]), ends, 3).tolist() == [5, 5, 6]


def test_a_vllm_that_lacks_what_is_patched_is_refused_in_one_sentence() -> None:
    check_vllm()

    class Runner:
        def _sample(self, logits: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"has no Runner\._update_states\(self\), which latentserve patches"):
        check_vllm(((Runner, "_update_states", ("self",)),))
    with pytest.raises(ConfigurationError, match=r"has no Runner\._sample\(self, logits, spec_decode_metadata\)"):
        check_vllm(((Runner, "_sample", ("self", "logits", "spec_decode_metadata")),))
