"""Chains that end where the model would sooner end them than anywhere before: trial answers, in the chain's own request.

At the end of a step, which is known when something follows it, P(end of thinking) is looked at; where it is high enough that
token is the only one that is left to sample, once a request. The answer follows by itself. All is decided on the device: under
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


@dataclass(slots=True)
class _Step:
    """What was prepared for the sampler, of B chains."""

    rows: list[Row]
    index: Tensor
    """In the batch."""
    ending: Tensor
    log_p: Tensor
    """Of the end of thinking, before it was the only choice."""
    due: Tensor
    ended: Tensor
    """Whether a step has, and nothing but white space has followed."""
    closed: Tensor
    """Whether thinking has ended."""


class Closings:
    """Of all requests in flight whose chain may be ended."""

    def __init__(self, size: int, ends: list[int], blank: list[int], device: torch.device) -> None:
        """`size`: V. `ends`: tokens that end a step; `blank`: those of white space, which belong to none."""
        self._device = device
        self._ends, self._blank = (torch.zeros(size, dtype=torch.bool, device=device) for _ in range(2))
        self._ends[ends], self._blank[blank] = True, True
        self._states: dict[str, Tensor] = {}  # engine request id → (2,) bool: a step has ended; thinking has
        self._step: _Step | None = None

    def __len__(self) -> int:
        return len(self._states)

    def forget(self, request_id: str) -> None:
        self._states.pop(request_id, None)

    @torch.inference_mode()
    def close(self, rows: list[Row], logits: Tensor) -> None:
        """Leave the end of thinking alone in the logits of the rows that are due."""
        works = [row.work for row in rows if isinstance(row.work, Close)]
        index = self._tensor([row.index for row in rows])
        ending = self._tensor([work.token for work in works])
        least = self._tensor([math.log(work.probability) for work in works])
        may = self._tensor([row.reached - work.start >= work.earliest for row, work in zip(rows, works, strict=True)])
        begun = torch.zeros(2, dtype=torch.bool, device=self._device)
        ended, closed = torch.stack([self._states.get(row.request_id, begun) for row in rows]).unbind(1)
        of = logits[index].float()  # (B, V)
        log_p = of.log_softmax(-1).gather(1, ending[:, None])[:, 0]
        follows = of.argmax(-1)
        due = may & ended & ~closed & ~self._blank[follows] & (follows != ending) & (log_p >= least)
        only = torch.full_like(of, -torch.inf).scatter(1, ending[:, None], 0.0)
        logits[index] = torch.where(due[:, None], only, of).to(logits.dtype)
        self._step = _Step(rows, index, ending, log_p, due, ended, closed)

    @torch.inference_mode()
    def keep(self, output: "SamplerOutput") -> None:
        """How each chain stands after what was sampled, one token a request; an end that nobody sampled says so by its rank,
        and how likely it was."""
        if (step := self._step) is None:
            return
        self._step, logprobs = None, output.logprobs_tensors
        assert logprobs is not None, "whose chain may be ended asks for log-probabilities"
        sampled = output.sampled_token_ids[step.index, 0].long()
        ended = self._ends[sampled] | (step.ended & self._blank[sampled])
        closed = step.closed | (sampled == step.ending)
        for row, state in zip(step.rows, torch.stack([ended, closed], 1).unbind(), strict=True):
            self._states[row.request_id] = state
        ranks, values = logprobs.selected_token_ranks, logprobs.logprobs
        ranks[step.index] = torch.where(step.due, UNASKED, ranks[step.index])
        values[step.index, 0] = torch.where(step.due, step.log_p.to(values.dtype), values[step.index, 0])

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self._device)
