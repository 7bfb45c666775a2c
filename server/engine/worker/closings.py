"""Chains that end where the model would sooner end them than anywhere before: trial answers, in the chain's own request.

At the end of a step, which is known when something follows it, P(end of thinking) is looked at; where it is high enough that
token becomes by far the likeliest, once a request. The answer follows by itself. All is decided on the device: under
asynchronous scheduling the CPU learns of a token one step late.

Shapes: B rows that sample, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from server.engine.work import Close
from server.engine.worker.hooks import Row

if TYPE_CHECKING:
    from vllm.v1.outputs import SamplerOutput

UNASKED = 0
"""The rank of an end of thinking that nobody sampled: ranks count from 1."""


_FAR = 1e4
"""Above all that may be sampled. Not infinite: what a request forbids stays forbidden."""


@dataclass(slots=True)
class _Chains:
    """B of them, as numbers of one tensor, (B,)."""

    ids: list[str]
    start: Tensor
    """Length of the prompt."""
    ending: Tensor
    least: Tensor
    """Log-probability of the end, from which on it comes."""
    earliest: Tensor


@dataclass(slots=True)
class _State:
    """(B,) bool."""

    ended: Tensor
    """Whether a step has, and nothing but white space has followed."""
    closed: Tensor
    """Whether thinking has ended."""


@dataclass(slots=True)
class _Step:
    """What was prepared for the sampler."""

    index: Tensor
    """In the batch."""
    log_p: Tensor
    """Of the end of thinking, before it was the only choice."""
    due: Tensor


class Closings:
    """Of all requests in flight whose chain may be ended."""

    def __init__(self, size: int, ends: list[int], blank: list[int], device: torch.device) -> None:
        """`size`: V. `ends`: tokens that end a step; `blank`: those of white space, which belong to none."""
        self._device = device
        self._ends, self._blank = (torch.zeros(size, dtype=torch.bool, device=device) for _ in range(2))
        self._ends[ends], self._blank[blank] = True, True
        self._states: dict[str, Tensor] = {}  # engine request id → (2,) bool: a step has ended; thinking has
        self._batch: tuple[_Chains, _State] | None = None  # of the last step
        self._step: _Step | None = None

    def __len__(self) -> int:
        return len(self._states)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._states.pop(request_id, None)

    @torch.inference_mode()
    def close(self, rows: list[Row], logits: Tensor) -> None:
        """Make the end of thinking what is sampled by those rows that are due."""
        chains, state = self._batch_of(rows)
        written = self._tensor([row.reached for row in rows]) - chains.start
        index, ending = self._tensor([row.index for row in rows]), chains.ending
        log_p = (logits[index, ending] - logits.logsumexp(-1)[index]).float()
        follows = logits.argmax(-1)[index]
        may = state.ended & ~state.closed & (written >= chains.earliest)
        due = may & ~self._blank[follows] & (follows != ending) & (log_p >= chains.least)
        logits[index, ending] += _FAR * due
        self._step = _Step(index, log_p, due)

    @torch.inference_mode()
    def keep(self, output: "SamplerOutput") -> None:
        """How each chain stands after what was sampled, one token a request; an end that nobody sampled says so by its rank,
        and how likely it was."""
        if (step := self._step) is None:
            return
        assert self._batch is not None, "close comes before"
        self._step, logprobs, (chains, state) = None, output.logprobs_tensors, self._batch
        assert logprobs is not None, "whose chain may be ended asks for log-probabilities"
        sampled = output.sampled_token_ids[step.index, 0].long()
        state.ended = self._ends[sampled] | (state.ended & self._blank[sampled])
        state.closed |= sampled == chains.ending
        ranks, values = logprobs.selected_token_ranks, logprobs.logprobs
        ranks[step.index] = torch.where(step.due, UNASKED, ranks[step.index])
        values[step.index, 0] = torch.where(step.due, step.log_p.to(values.dtype), values[step.index, 0])

    def _batch_of(self, rows: list[Row]) -> "tuple[_Chains, _State]":
        """Of these chains side by side: mostly those of the last step."""
        ids = [row.request_id for row in rows]
        if self._batch is None or self._batch[0].ids != ids:
            self._write_back()
            works = [row.work for row in rows if isinstance(row.work, Close)]
            chains = _Chains(
                ids, self._tensor([work.start for work in works]), self._tensor([work.token for work in works]),
                self._tensor([math.log(work.probability) for work in works]), self._tensor([work.earliest for work in works]),
            )  # fmt: skip
            begun = torch.zeros(2, dtype=torch.bool, device=self._device)
            self._states |= {one: begun for one in ids if one not in self._states}
            self._batch = chains, _State(*torch.stack([self._states[one] for one in ids], 1))
        return self._batch

    def _write_back(self) -> None:
        """The states of the last step's batch, by chain; those that have ended are gone."""
        if self._batch is not None:
            (chains, state), self._batch = self._batch, None
            each = zip(chains.ids, torch.stack([state.ended, state.closed], 1).unbind(), strict=True)
            self._states.update((one, of) for one, of in each if one in self._states)

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self._device)
