"""Every patch of vLLM, and every private name of it that we use.

`Hooks` calls a `RowState`, which is shaped like `ModelState` of vLLM's second model runner (vllm/v1/worker/gpu/model_states),
from three methods of the first one:

    _update_states   add_request, remove_request
    _model_forward   before: prepare_inputs_embeds; after: read_hidden_states
    _sample          before: the reserved token is masked, for every request, and prepare_logits; after: write_samples

The schedulers keep blocks that hold overlaid rows to the request that made them, and end a step of a `Think` request where its
question ends. `check_vllm` says in one sentence what an
installed vLLM lacks of all this.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch
import vllm
from torch import Tensor
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from server.engine.errors import ConfigurationError
from server.engine.work import Mix, Overlay, Think, Work, work_of
from server.engine.worker.lifetime import follow_parent

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import SamplerOutput


@dataclass(frozen=True, slots=True)
class Row:
    """One request of ours in a step."""

    request_id: str
    work: Work
    index: int
    """In the batch."""
    first: int
    end: int
    """Its rows in the tensors of the step: [first, end)."""
    computed: int
    """Positions that earlier steps, or the prefix cache, have computed."""
    prompt_token_ids: Sequence[int]

    @property
    def length(self) -> int:
        """Of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def question_length(self) -> int:
        """Of what is read: the whole prompt, or its beginning."""
        return self.work.length if isinstance(self.work, Think) else self.length

    @property
    def reached(self) -> int:
        """Positions that are computed after this step."""
        return self.computed + self.end - self.first


class RowState(Protocol):
    """What reads and writes rows; one method a place, all rows of ours at once."""

    placeholder: int | None
    """Reserved token: nobody samples it."""
    layers: tuple[int, ...]
    """Earlier layers whose states are read, too."""
    reads_all: bool
    """Whether it wants the states of every step, not only of those with rows of ours."""

    def add_request(self, work: Work) -> None: ...
    def remove_request(self, request_id: str, work: Work) -> None: ...
    def prepare_inputs_embeds(self, rows: list[Row], inputs_embeds: Tensor | None) -> None: ...
    def read_hidden_states(self, rows: list[Row], hidden_states: Tensor) -> None:
        """The states of all tokens of a step, (1 + L, T, d); and which rows are ours."""

    def prepare_logits(self, rows: list[Row], logits: Tensor) -> None:
        """Of the rows whose sampled token counts; one row of logits a request."""

    def write_samples(self, rows: list[Row], output: "SamplerOutput") -> None: ...


class Hooks:
    """Wraps three methods of a model runner."""

    def __init__(self, runner: Any, state: RowState) -> None:
        check_vllm()
        self._runner, self._state = runner, state
        self._works: dict[str, Work] = {}  # engine request id → work
        self._rows: list[Row] = []  # of this step
        self._aside: dict[int, torch.Generator] = {}  # batch index → generator that this step must not use
        self.preemptions = 0
        if state.layers:
            runner.model.set_aux_hidden_state_layers(state.layers)
        runner._update_states = self._around_update_states(runner._update_states)
        runner._model_forward = self._around_model_forward(runner._model_forward)
        runner._sample = self._around_sample(runner._sample)
        mend_thinking_budgets()
        if runner.device.type == "cpu":
            mend_drafts()

    def _around_update_states(self, update_states: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(step: "SchedulerOutput") -> Any:
            # Before the batch changes: indices are still those of the last step.
            self._runner.input_batch.generators.update(self._aside)
            self._aside.clear()
            self._track(step)
            return update_states(step)

        return wrapped

    def _around_model_forward(self, model_forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._rows = self._rows_of_step() if self._works else []
            if self._rows:
                self._state.prepare_inputs_embeds(self._rows, kwargs.get("inputs_embeds"))
            output = model_forward(*args, **kwargs)
            final, earlier = output if self._state.layers else (output, [])
            if self._rows or self._state.reads_all:
                batch = self._runner.input_batch
                num_tokens = int(self._runner.query_start_loc.np[batch.num_reqs])  # what follows pads the batch
                states = torch.stack([final, *earlier])[:, :num_tokens] if earlier else final[None, :num_tokens]
                self._state.read_hidden_states(self._rows, states)
            return final

        return wrapped

    def _around_sample(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(logits: Tensor | None, *args: Any, **kwargs: Any) -> "SamplerOutput":
            if logits is not None and self._state.placeholder is not None:
                logits[:, self._state.placeholder] = -torch.inf
            self._set_generators_aside()
            if self._rows and logits is not None:
                discarded = self._runner.discard_request_mask.np
                self._state.prepare_logits([row for row in self._rows if not discarded[row.index]], logits)
            output = sample(logits, *args, **kwargs)
            if self._rows:
                self._state.write_samples(self._rows, output)
            return output

        return wrapped

    def _track(self, step: "SchedulerOutput") -> None:
        self.preemptions += len(step.preempted_req_ids or ())
        for request_id in step.finished_req_ids:
            if work := self._works.pop(request_id, None):
                self._state.remove_request(request_id, work)
        for request in step.scheduled_new_reqs:
            if work := work_of(request.sampling_params.extra_args if request.sampling_params else None):
                self._works[request.req_id] = work
                self._state.add_request(work)

    def _rows_of_step(self) -> list[Row]:
        batch, bounds = self._runner.input_batch, self._runner.query_start_loc.np
        return [
            Row(
                request_id,
                work,
                index,
                int(bounds[index]),
                int(bounds[index + 1]),
                int(batch.num_computed_tokens_cpu[index]),
                self._runner.requests[request_id].prompt_token_ids,
            )
            for index, request_id in enumerate(batch.req_ids)
            if (work := self._works.get(request_id))
        ]

    def _set_generators_aside(self) -> None:
        """Hide the random generators of requests that are still being prefilled, whose sampled token is thrown away.

        vLLM 0.32 winds such a generator back, which CPU generators cannot do: a client's seed would stop the engine.
        """
        if self._runner.device.type != "cpu":
            return
        batch = self._runner.input_batch
        for index in self._runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist():
            if index in batch.generators:
                self._aside[index] = batch.generators.pop(index)


def mend_thinking_budgets() -> None:
    """vLLM 0.32: a request without a budget that moves to the place of one that ended inherits its budget: its chain is cut.

    `sync_batch` moves states only where the mover has one, and leaves the dead request's state where it was.
    """
    original = ThinkingBudgetStateHolder.sync_batch
    if hasattr(original, "mended"):
        return

    def sync_batch(self: ThinkingBudgetStateHolder, update: BatchUpdate | None) -> None:
        if not update:
            return
        original(self, replace(update, moved=()))
        for move in update.moved:
            if move[2] is MoveDirectionality.UNIDIRECTIONAL:
                self._state.pop(move[1], None)
            original(self, replace(update, removed=(), added=(), moved=(move,)))

    sync_batch.mended = True  # type: ignore[attr-defined]
    ThinkingBudgetStateHolder.sync_batch = sync_batch


def mend_drafts() -> None:
    """vLLM 0.32 on a CPU: its kernel expands temperatures, top-k and top-p into a copy, so drafts are sampled with garbage."""
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """vLLM's function by torch: a value (B,) of each request for each of its drafts, (num_tokens,)."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return x.masked_fill(x == replace_from, replace_to).repeat_interleave(counts, output_size=num_tokens)


class _Hybrid:
    """Mixed into vLLM's schedulers.

    A block that holds overlaid rows, and all after it, are hashed with the key of their work: overlaid rows are no function of
    their ids, so nobody else may find them in the prefix cache. X before them is shared. Of a `Think` request the block with
    X's last token, too, is its own: so that token is always computed, in a step that ends with it.
    """

    hash_block_size: int

    def __init__(self, *args: Any, **options: Any) -> None:
        """In the engine core's process, whatever processes its workers have."""
        super().__init__(*args, **options)
        self._question_ends: dict[str, int] = {}  # of `Think` requests
        follow_parent()

    def add_request(self, request: Request) -> None:
        work = work_of(request.sampling_params.extra_args if request.sampling_params else None)
        if isinstance(work, Overlay | Think | Mix) and request._block_hasher is not None:
            first = (work.length - 1 if isinstance(work, Think) else work.start) // self.hash_block_size
            request._block_hasher = private_hasher(request._block_hasher, first, work.key)
            del request.block_hashes[first:]
            request.update_block_hashes()
        if isinstance(work, Think):
            self._question_ends[request.request_id] = work.length
        super().add_request(request)  # type: ignore[misc]

    def _free_request(self, request: Request, *args: Any, **options: Any) -> Any:
        self._question_ends.pop(request.request_id, None)
        return super()._free_request(request, *args, **options)  # type: ignore[misc]

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM's last word on how many tokens of a request a step computes."""
        num_new_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)  # type: ignore[misc]
        left = self._question_ends.get(request.request_id, 0) - num_computed_tokens
        return min(num_new_tokens, left) if left > 0 else num_new_tokens


def private_hasher(hasher: Callable[[Request], list[BlockHash]], first: int, key: str) -> Callable[[Request], list[BlockHash]]:
    """vLLM's hasher, with the key in the hash of block `first`; those of later blocks contain that of the block before them."""

    def hashes(request: Request) -> list[BlockHash]:
        done = len(request.block_hashes)
        new = hasher(request)
        if not done <= first < done + len(new):
            return new
        private = BlockHash(hashlib.sha256(new[first - done] + key.encode()).digest())
        request.block_hashes.extend([*new[: first - done], private])
        rest = hasher(request)
        mine = request.block_hashes[done:]
        del request.block_hashes[done:]
        return [*mine, *rest]

    return hashes


class HybridScheduler(_Hybrid, Scheduler):
    """vLLM's scheduler with private blocks, and steps that end with a question."""


class HybridAsyncScheduler(_Hybrid, AsyncScheduler):
    """The same for asynchronous scheduling."""


_Patched = tuple[type | ModuleType, str, tuple[str, ...]]
_PATCHED: tuple[_Patched, ...] = (
    (GPUModelRunner, "_update_states", ("self", "scheduler_output")),
    (GPUModelRunner, "_model_forward", ("self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds")),
    (GPUModelRunner, "_sample", ("self", "logits", "spec_decode_metadata")),
    (ThinkingBudgetStateHolder, "sync_batch", ("self", "batch_update")),
    (Scheduler, "add_request", ("self", "request")),
    (Scheduler, "_free_request", ("self", "request")),
    (Scheduler, "_reserve_prefill_lookahead", ("self", "request", "num_computed_tokens", "num_new_tokens")),
    (Request, "update_block_hashes", ("self",)),
    (rejection_sampler, "expand_batch_to_tokens", ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to")),
)


def check_vllm(patched: tuple[_Patched, ...] = _PATCHED) -> None:
    """Raise `ConfigurationError` when the installed vLLM lacks a method that is patched here, or takes other parameters."""
    for owner, name, expected in patched:
        method = getattr(owner, name, None)
        if method is None or (
            not hasattr(method, "mended") and tuple(inspect.signature(method).parameters)[: len(expected)] != expected
        ):
            raise ConfigurationError(
                f"vLLM {vllm.__version__} has no {owner.__name__}.{name}({', '.join(expected)}), which latentserve patches: "
                "install the vLLM that its lock file names (0.32.0)."
            )
