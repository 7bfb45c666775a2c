"""Our part of vLLM's worker: it reads hidden states, runs the reasoning network and the probe, and overlays latents.

`HybridWorker` is vLLM's `worker_extension_cls`: its methods become methods of the worker that `collective_rpc` calls. It
wraps three methods of the model runner:

    _update_states   learns which requests are ours, and forgets those that ended
    _model_forward   before: writes z over the placeholder rows of the input embeddings
                     after: takes H_X of every `read` request whose prompt ends in this step, and runs the network and
                     the probe once for all of them
    _sample          writes each verdict into the log-probabilities of its request

Under tensor parallelism every rank computes the same z from the same (all-gathered) hidden states.
Shapes: B requests read in this step, T prompt tokens, N latent tokens, d hidden size.
"""

import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import supports_eagle3

from reasoning_net.bundle import Bundle, BundleError
from reasoning_net.model import ReasoningNet
from reasoning_net.precision import compute_dtype
from router.policy import Scores
from router.probe import Probe
from server.engine.prompt import Role, Verdict

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

logger = logging.getLogger("vllm.latentserve.worker")


class HybridWorker:
    """Mixed into vLLM's worker class."""

    if TYPE_CHECKING:
        model_runner: GPUModelRunner
        latentserve: "LatentOverlay"

    def latentserve_install(self, bundle: str | None, capacity: int) -> None:
        """Load the bundle and hook into the model runner. Called once, before the first request."""
        loaded = Bundle.load(bundle) if bundle else None
        self.latentserve = LatentOverlay(self.model_runner, loaded, capacity)

    def latentserve_drop(self, keys: list[str]) -> None:
        """Forget the latents of requests that will not be answered (the client left between the two steps)."""
        self.latentserve.drop(keys)

    def latentserve_state(self) -> dict[str, Any]:
        """Counts for tests and debugging."""
        return self.latentserve.state()

    def latentserve_inspect(self, key: str) -> tuple[list[list[float]], list[list[float]] | None]:
        """H_X (T, d), and z (N, d) where there is a network, of a `read` request that asked to keep them."""
        states, z = self.latentserve.kept_states.pop(key), self.latentserve.latents.get(key)
        return states.float().tolist(), None if z is None else z.float().tolist()


def network_dtype(device: torch.device, base_dtype: torch.dtype) -> torch.dtype:
    """The base's; on a CPU that computes in bf16 (the network's own, as it is stored) that: twice as fast as float32."""
    return compute_dtype(device) if device.type == "cpu" and base_dtype is torch.float32 else base_dtype


class LatentOverlay:
    """The latents of all requests in flight, and the hooks that compute and use them."""

    def __init__(self, runner: "GPUModelRunner", bundle: Bundle | None, capacity: int) -> None:
        self._runner, self._capacity = runner, capacity
        self._net: ReasoningNet | None = bundle.reasoning_net() if bundle else None
        self._probe: Probe | None = bundle.probe() if bundle else None
        self._dtype = network_dtype(runner.device, runner.dtype)
        for module in (self._net, self._probe):
            if module is not None:
                # The probe is tiny, and its scores are compared with thresholds: always in float32.
                module.to(runner.device, self._dtype if module is self._net else torch.float32).requires_grad_(False)
        self._placeholder = bundle.manifest.layout.placeholder_token_id if bundle else None
        self.latents: OrderedDict[str, Tensor] = OrderedDict()  # key → (N, d)
        self.kept_states: dict[str, Tensor] = {}  # key → H_X, (T, d), of requests that asked for it
        self._layers = self._probe.config.layers if self._probe else ()
        if self._layers and not supports_eagle3(runner.model):
            raise BundleError(f"vLLM gives no earlier layers of a {type(runner.model).__name__}. Fit a probe without --layers.")
        if self._layers:
            self._runner.model.set_aux_hidden_state_layers(self._layers)
        self._answers_left: dict[str, int] = {}  # key → answer requests that have not ended
        self._roles: dict[str, Role] = {}  # engine request id → role
        self._states: dict[str, list[Tensor]] = {}  # `read` request id → chunks of H_X
        self._verdicts: dict[str, Verdict] = {}  # of this step
        self._aside: dict[int, torch.Generator] = {}  # batch index → generator that this step must not use
        self._lost: set[str] = set()  # `answer` requests of this step whose latents are missing
        self._steps_with_reads = 0
        self._reads = 0
        self._preemptions = 0
        self._wrap()

    def _wrap(self) -> None:
        runner: Any = self._runner
        update_states, model_forward, sample = runner._update_states, runner._model_forward, runner._sample

        def wrapped_update_states(scheduler_output: "SchedulerOutput") -> Any:
            self._return_generators()
            self._track(scheduler_output)
            return update_states(scheduler_output)

        def wrapped_model_forward(*args: Any, **kwargs: Any) -> Any:
            if self._roles:
                self._overlay(kwargs.get("inputs_embeds"))
            output = model_forward(*args, **kwargs)
            final, earlier = output if self._layers else (output, [])
            if self._roles:
                self._read(torch.stack([final, *earlier]) if earlier else final[None])
            return final

        def wrapped_sample(*args: Any, **kwargs: Any) -> "SamplerOutput":
            self._set_generators_aside()
            output = sample(*args, **kwargs)
            if self._verdicts or self._lost:
                self._report(output)
            return output

        runner._update_states = wrapped_update_states
        runner._model_forward = wrapped_model_forward
        runner._sample = wrapped_sample

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

    def _return_generators(self) -> None:
        """Before the batch changes: indices are still those of the last step."""
        self._runner.input_batch.generators.update(self._aside)
        self._aside.clear()

    def _track(self, step: "SchedulerOutput") -> None:
        self._preemptions += len(step.preempted_req_ids or ())
        for request_id in step.finished_req_ids:
            self._states.pop(request_id, None)
            role = self._roles.pop(request_id, None)
            if role and role.kind == "answer" and role.key in self._answers_left:
                self._answers_left[role.key] -= 1
                if not self._answers_left[role.key]:
                    self.drop([role.key])
        for request in step.scheduled_new_reqs:
            role = Role.of(request.sampling_params.extra_args if request.sampling_params else None)
            if role and role.kind == "forget":
                self.drop([role.key])
            elif role:
                self._roles[request.req_id] = role
                if role.kind == "answer":
                    self._answers_left.setdefault(role.key, role.copies)

    def drop(self, keys: list[str]) -> None:
        for key in keys:
            self.latents.pop(key, None)
            self._answers_left.pop(key, None)

    def _rows(self, kind: str) -> list[tuple[int, str, Role, int, int, int]]:
        """(index in the batch, request id, role, first row, end row, tokens computed before) of this step's requests."""
        batch, bounds = self._runner.input_batch, self._runner.query_start_loc.np
        rows = []
        for index, request_id in enumerate(batch.req_ids):
            role = self._roles.get(request_id)
            if role and role.kind == kind:
                computed = int(batch.num_computed_tokens_cpu[index])
                rows.append((index, request_id, role, int(bounds[index]), int(bounds[index + 1]), computed))
        return rows

    def _overlay(self, inputs_embeds: Tensor | None) -> None:
        """Write z over the placeholder rows that this step computes (all of them, or a chunk, or those of a recomputation)."""
        for _, request_id, role, first, end, computed in self._rows("answer"):
            begin = max(role.start, computed)  # positions in the prompt
            stop = min(role.start + role.num_latents, computed + end - first)
            if begin >= stop:
                continue
            z = self.latents.get(role.key)
            if z is None or inputs_embeds is None:
                # Never answer from placeholders: the first token tells the engine to fail this request.
                logger.error("The latents of request %s are not in the worker.", request_id)
                self._lost.add(request_id)
                continue
            rows = slice(first + begin - computed, first + stop - computed)
            inputs_embeds[rows] = z[begin - role.start : stop - role.start].to(inputs_embeds.dtype)

    @torch.inference_mode()
    def _read(self, hidden_states: Tensor) -> None:
        """Collect H_X, (1 + L, T, d) with the earlier layers that the probe reads, chunk by chunk; where a prompt ends in this
        step, compute its verdict and its latents."""
        ended: list[tuple[str, Role, Tensor]] = []
        for _, request_id, role, first, end, computed in self._rows("read"):
            if computed == 0 or request_id not in self._states:
                self._states[request_id] = []  # a new prompt, or one that is computed again after a preemption
            if first == end:
                continue
            length = self._runner.requests[request_id].num_prompt_tokens
            self._states[request_id].append(hidden_states[:, first:end].clone())
            if computed + end - first == length:
                ended.append((request_id, role, torch.cat(self._states.pop(request_id), dim=1)))
        if ended:
            self._steps_with_reads += 1
            self._reads += len(ended)
            self._think(ended)

    def _think(self, ended: list[tuple[str, Role, Tensor]]) -> None:
        """The network and the probe, once for all prompts that ended in this step."""
        started = time.perf_counter()
        length = max(states.shape[1] for _, _, states in ended)
        first = ended[0][2]
        layers, _, size = first.shape
        all_states = first.new_zeros(len(ended), layers, length, size)  # (B, 1 + L, T, d), padded on the left
        mask = torch.zeros(len(ended), length, dtype=torch.bool, device=first.device)
        for row, (_, _, states) in enumerate(ended):
            all_states[row, :, length - states.shape[1] :] = states
            mask[row, length - states.shape[1] :] = True
        hidden_states = all_states[:, 0]
        num_latents = max(role.num_latents for _, role, _ in ended)
        z = None
        if self._net is not None and num_latents:
            # With the conditioner `last` a prompt's cached positions are not here, and not needed.
            reads_embeddings = self._net.config.reads_embeddings
            embeddings = self._embed([request_id for request_id, _, _ in ended], mask) if reads_embeddings else hidden_states
            z = self._net(hidden_states.to(self._dtype), embeddings.to(self._dtype), mask, num_latents)  # (B, N, d)
        # Reading a value waits for a GPU, so the times are those of the work.
        finite = z.isfinite().all(dim=(1, 2)).tolist() if z is not None else [True] * len(ended)
        thought = time.perf_counter()
        scores = self._scores(all_states, mask, z)
        network_seconds, probe_seconds = thought - started, time.perf_counter() - thought
        for row, (request_id, role, _) in enumerate(ended):
            if role.keep_states:
                self.kept_states[role.key] = ended[row][2][0]
            self._verdicts[request_id] = Verdict(finite[row], network_seconds, probe_seconds, scores[row])
            if z is not None and role.num_latents and finite[row]:
                # A latent is a function of the latents before it only: fewer of them are a prefix.
                self.latents[role.key] = z[row, : role.num_latents].clone()
        while len(self.latents) > self._capacity:
            key, _ = self.latents.popitem(last=False)
            logger.warning("Dropped the latents of %s: more than %d requests hold latents.", key, self._capacity)

    def _embed(self, request_ids: list[str], mask: Tensor) -> Tensor:
        """E_X of the prompts, (B, T, d), padded on the left."""
        ids = mask.new_zeros(mask.shape, dtype=torch.long)
        for row, request_id in enumerate(request_ids):
            prompt = self._runner.requests[request_id].prompt_token_ids
            ids[row, mask.shape[1] - len(prompt) :] = torch.tensor(prompt)
        return self._runner.model.embed_input_ids(ids.flatten()).view(*mask.shape, -1)

    def _scores(self, hidden_states: Tensor, mask: Tensor, z: Tensor | None) -> list[Scores]:
        if self._probe is None or (z is None and "latents" in self._probe.config.features):
            return [Scores()] * len(hidden_states)
        features = self._probe.features(hidden_states.float(), mask, None if z is None else z.float())
        scores = {target: values.tolist() for target, values in self._probe.scores(features).items()}
        return [Scores(**{target: values[row] for target, values in scores.items()}) for row in range(len(features))]

    def _report(self, output: "SamplerOutput") -> None:
        """Verdicts into the log-probabilities of their rows; the reserved token where latents were lost."""
        for index, request_id in enumerate(self._runner.input_batch.req_ids):
            if request_id in self._lost:
                output.sampled_token_ids[index] = self._placeholder
            verdict = self._verdicts.get(request_id)
            if verdict is None or (self._net is None and self._probe is None):
                continue  # without a bundle the log-probabilities themselves are the signal (first-token entropy)
            assert output.logprobs_tensors is not None, "a `read` request asks for log-probabilities"
            values = torch.tensor(verdict.values(), device=output.logprobs_tensors.logprobs.device)
            output.logprobs_tensors.logprobs[index, : len(values)] = values
            # Ids of their own for the whole row: by id they become a dict, in which a real token would replace a value.
            ids = output.logprobs_tensors.logprob_token_ids
            ids[index] = torch.arange(ids.shape[1], dtype=ids.dtype, device=ids.device)
        self._verdicts.clear()
        self._lost.clear()

    def state(self) -> dict[str, Any]:
        return {
            "latents": len(self.latents),
            "roles": len(self._roles),
            "partial_prompts": len(self._states),
            "reads": self._reads,
            "preemptions": self._preemptions,
            "steps_with_reads": self._steps_with_reads,
        }
