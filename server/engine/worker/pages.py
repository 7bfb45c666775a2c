"""Pages of hidden states: one row a slot of the KV cache, written by every step at the slots that its keys and values go to.

A block that the prefix cache hands out brings its states with it, and one that is evicted or computed again loses them with its
keys and values: whatever the scheduler does, the states of a request's slots are those of its tokens. So a question whose start
is cached is never computed anew to be read.

Shapes: S slots, L earlier layers that a probe reads, T tokens of a step or a prompt, d hidden size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec

from server.engine.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class Pages:
    """(S, 1 + L, d), beside the KV cache of a layer with full attention: other layers give blocks away that X still needs."""

    def __init__(self, runner: "GPUModelRunner", num_states: int) -> None:
        """`num_states`: 1 + L. Raises `ConfigurationError` for a model without full attention."""
        groups = runner.kv_cache_config.kv_cache_groups
        group = next((i for i, group in enumerate(groups) if isinstance(group.kv_cache_spec, FullAttentionSpec)), None)
        if group is None:
            raise ConfigurationError(
                "The bundle reads every position of a prompt, and this model has no layer with full attention, beside whose KV "
                "cache their states could be kept. Train a network with `--conditioner last`, and a probe without `mean`."
            )
        self._runner, self._group = runner, group
        slots = runner.kv_cache_config.num_blocks * groups[group].kv_cache_spec.block_size
        size = (slots, num_states, runner.model_config.get_hidden_size())
        self._rows = torch.empty(size, dtype=runner.dtype, device=runner.device).zero_()  # all of it is there from the start

    def write(self, states: Tensor) -> None:
        """The states of all tokens of a step, (1 + L, T, d)."""
        slots = self._runner.input_batch.block_table[self._group].slot_mapping.gpu[: states.shape[1]]
        self._rows[slots.long()] = states.transpose(0, 1).to(self._rows.dtype)

    def read(self, index: int, first: int, end: int) -> Tensor:
        """The states of the positions [first, end) of the request at `index` of the batch, (1 + L, end − first, d)."""
        table = self._runner.input_batch.block_table[self._group]
        positions = torch.arange(first, end, device=self._rows.device)
        blocks = table.block_table.gpu[index, positions // table.block_size].long()
        return self._rows[blocks * table.block_size + positions % table.block_size].transpose(0, 1)


def share_of_pages(specs: dict[str, KVCacheSpec], num_states: int, hidden_size: int, bytes_a_value: int) -> float:
    """Of the memory for KV cache and pages together: what the pages take."""
    keys_and_values = sum(spec.page_size_bytes / spec.block_size for spec in specs.values())  # bytes a token
    states = num_states * hidden_size * bytes_a_value
    return states / (keys_and_values + states)
