"""Pages of hidden states: they follow the slots of the KV cache, and their share of its memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from server.engine.errors import ConfigurationError
from server.engine.worker.pages import Pages, share_of_pages

BLOCK, BLOCKS, SIZE = 4, 8, 3
SPEC = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=8, dtype=torch.float32)


def runner(table: list[list[int]], slots: list[int], spec: Any = SPEC) -> Any:
    groups = [SimpleNamespace(kv_cache_spec=spec)]
    block_table = SimpleNamespace(
        block_size=BLOCK,
        block_table=SimpleNamespace(gpu=torch.tensor(table)),
        slot_mapping=SimpleNamespace(gpu=torch.tensor(slots)),
    )
    return SimpleNamespace(
        kv_cache_config=SimpleNamespace(kv_cache_groups=groups, num_blocks=BLOCKS),
        model_config=SimpleNamespace(get_hidden_size=lambda: SIZE),
        dtype=torch.float32, device=torch.device("cpu"), input_batch=SimpleNamespace(block_table=[block_table]),
    )  # fmt: skip


def test_states_are_found_by_position_wherever_their_blocks_are() -> None:
    # A prompt of six tokens in the blocks 5 and 2, and one token of another request in block 0.
    pages = Pages(runner([[5, 2], [0, 0]], [20, 21, 22, 23, 8, 9, 0, -1]), num_states=2)
    states = torch.arange(2 * 7 * SIZE, dtype=torch.float32).view(2, 7, SIZE)
    pages.write(states)
    assert torch.equal(pages.read(0, 0, 6), states[:, :6])
    assert torch.equal(pages.read(0, 3, 5), states[:, 3:5])
    assert torch.equal(pages.read(1, 0, 1), states[:, 6:])


def test_a_model_without_full_attention_has_none() -> None:
    spec = MambaSpec(block_size=BLOCK, shapes=((2, 2),), dtypes=(torch.float32,))
    with pytest.raises(ConfigurationError, match="no layer with full attention"):
        Pages(runner([[0]], [0], spec), num_states=1)


def test_their_share_of_the_memory() -> None:
    # Six layers of 2 × 2 heads × 8 values × 4 bytes a token, and one state of 24 values × 4 bytes.
    share = share_of_pages({str(layer): SPEC for layer in range(6)}, num_states=1, hidden_size=24, bytes_a_value=4)
    assert share == pytest.approx(96 / (6 * 128 + 96))
