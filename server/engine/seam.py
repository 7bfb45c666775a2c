"""HybridEngine: vLLM's AsyncLLM with one seam, `generate`, which every request passes, whatever route it came by.

guard     what may not enter (`guards`)
mode      one file each in `modes`: which passes are made, and what is given of them
passes    engine requests (`passes`), with work for the worker (`worker`)
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from reasoning_net.bundle import Bundle
from reasoning_net.layout import LayoutIds
from router.policy import Decision, Mode, NumLatents, Scores
from router.router import Router
from server.engine import modes
from server.engine.guards import guard_ask, guard_encodable, guard_only_text, guard_output, guard_params, guard_prompt
from server.engine.passes import Passes, Question, finite, read_params, unique_id
from server.engine.shadow import Shadows
from server.engine.work import Read, Verdict
from server.observe.metrics import Metrics
from server.observe.record import Record, current


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What makes this engine hybrid: everything that modes and guards need beside vLLM."""

    layout: LayoutIds
    router: Router
    num_latents: int
    """Latents per question by default; 0 without a reasoning network."""
    chooses_latents: bool
    """Requests that name no number get as few as suffice."""
    ladder: tuple[int, ...]
    """Smaller numbers of latents that the probe has an output for."""
    max_latents: int
    can_think_on: bool
    """Whether thinking may start in latents and go on in text."""
    thinking: Mode
    """What mode auto answers with where a cheap answer does not suffice."""
    has_probe: bool
    reads_all_positions: bool
    """Reading must compute every position of X, so it cannot take X from the prefix cache."""
    metrics: Metrics
    end_of_thinking: int | None
    """The last token of what ends a chain."""

    @property
    def can_think_latent(self) -> bool:
        return self.max_latents > 0

    def most_latents(self, asked: NumLatents | None) -> int:
        """That may stand in for the chain."""
        return asked if isinstance(asked, int) else self.num_latents

    def latents_for(self, asked: NumLatents | None, scores: Scores | None) -> int:
        """As many as a question is answered with: those asked for, or as few as suffice."""
        most, calibration = self.most_latents(asked), self.router.calibration
        if scores is None or calibration is None or not (asked == "auto" or (asked is None and self.chooses_latents)):
            return most
        return scores.fewest_latents(most, calibration.latent_loss)

    def longest_layout(self, num_latents: NumLatents | None, *, may_be_latent: bool) -> int:
        """Tokens that the longest layout adds to X."""
        longest = max(len(self.layout.direct), len(self.layout.explicit))
        if self.can_think_latent and may_be_latent:
            longest = max(longest, len(self.layout.latent(self.most_latents(num_latents))))
        return longest


class Room(asyncio.Semaphore):
    """For the latents of so many questions: they are held from reading to the end of the answer."""

    waiting = 0

    async def acquire(self) -> bool:  # type: ignore[override]
        self.waiting += 1
        try:
            return await super().acquire()
        finally:
            self.waiting -= 1


class HybridEngine(AsyncLLM):
    """An engine client: vLLM's serving layer does not know that it is not a plain AsyncLLM."""

    hybrid: Hybrid
    room: Room
    _shadows: Shadows | None = None

    async def install(
        self, bundle: Bundle | None, layout: LayoutIds, router: Router, metrics: Metrics, *,
        num_latents: NumLatents | None = None, shadow_share: float = 0.0,
    ) -> None:  # fmt: skip
        """Load the bundle in the worker and switch hybrid reasoning on. Called once, before the first request."""
        manifest = bundle.manifest if bundle else None
        net, probe = (manifest.reasoning_net, manifest.probe) if manifest else (None, None)
        max_latents = net.num_latent_tokens if net else 0
        served = manifest.num_latent_tokens if manifest and manifest.num_latent_tokens else max_latents
        config = self.vllm_config.reasoning_config
        end = (config.natural_reasoning_end_token_ids if config else None) or [None]
        self.hybrid = Hybrid(
            layout=layout,
            router=router,
            num_latents=num_latents if isinstance(num_latents, int) else served,
            chooses_latents=num_latents == "auto",
            ladder=probe.ladder if probe else (),
            max_latents=max_latents,
            can_think_on=bool(manifest and manifest.thinks_on),
            thinking=router.calibration.thinking if router.calibration else Mode.EXPLICIT,
            has_probe=probe is not None,
            reads_all_positions=bool(net and net.reads_all_positions) or bool(probe and "mean" in probe.features),
            metrics=metrics,
            end_of_thinking=end[-1],
        )
        # As many questions as the engine runs at once, and as many again waiting.
        self.room = Room(2 * self.vllm_config.scheduler_config.max_num_seqs)
        metrics.watch_drift(lambda: router.drift.psi)
        metrics.watch_queue(lambda: self.room.waiting)
        if shadow_share:
            self._shadows = Shadows(self, shadow_share, metrics, self.get_tokenizer().decode)
        await self.collective_rpc("latentserve_install", args=(str(bundle.directory) if bundle else None,))
        # The model runner takes our embeddings from here on; vLLM's front end shall take nobody's.
        self.model_config.enable_prompt_embeds = False

    def shutdown(self, timeout: float | None = None) -> None:
        if self._shadows:
            self._shadows.close()
        super().shutdown(timeout)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As AsyncLLM.generate; the current record, if there is one, says how to answer, and learns what happened."""
        token_ids = guard_prompt(prompt, self.hybrid.layout.placeholder)
        guard_params(sampling_params, self.hybrid.layout.placeholder)
        guard_encodable(prompt, sampling_params, options)
        record = current.get()
        is_text = prompt.get("type", "token") == "token"
        if record is not None and not is_text:
            guard_only_text(record.ask)
            record.decided(Decision(Mode.EXPLICIT, None, None, "not_text"))
        if record is None or not is_text:
            outputs = self.run(prompt, sampling_params, unique_id(request_id), **options)
        else:
            guard_ask(record.ask, self.hybrid, token_ids, sampling_params, self.model_config.max_model_len)
            outputs = self._routed(Question(prompt, token_ids, sampling_params.clone(), request_id, options), record)
        async with aclosing(outputs):
            async for output in outputs:
                guard_output(output, sampling_params)
                yield output

    def run(self, prompt: Any, params: SamplingParams, request_id: str, **options: Any) -> AsyncGenerator[RequestOutput, None]:
        """One engine request, as plain vLLM runs it."""
        return super().generate(prompt, params, request_id, **options)

    async def _routed(self, question: Question, record: Record) -> AsyncGenerator[RequestOutput, None]:
        """The mode's own way. Raises for a second prompt beside the first: one request has one route."""
        if record.is_running:
            raise VLLMValidationError("A mode takes one prompt a request. Send the prompts one by one.", parameter="prompt")
        record.is_running = True
        ask, params = record.ask, question.params
        if ask.thinking_budget is not None and self.has_thinking_budgets and params.thinking_token_budget is None:
            params.thinking_token_budget = ask.thinking_budget
        mode, run = modes.registered()[ask.mode], Passes(self, question, record)
        if not record.escalated:
            record.arrived(len(question.token_ids))
        # After an escalation all is decided, and the doubtful answer was streamed.
        outputs = run.answer() if record.escalated else self._only_route(mode, run) if ask.only_route else mode.answer(run)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        finally:
            record.is_running = False
        if self._shadows and ask.mode == "auto" and run.token_ids and not record.restarts:
            self._shadows.consider(question.prompt, params, record, run.token_ids)

    async def _only_route(self, mode: modes.ReasoningMode, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        async with run.reading() as verdict:
            run.decide(finite(mode.decide(run, verdict), verdict))
        yield run.nothing()

    def drop_latents(self, key: str) -> None:
        """Those that nobody will ask for, without waiting."""
        task = asyncio.ensure_future(self.collective_rpc("latentserve_drop", args=(key,)))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def encode_suffix(self, text: str) -> list[int]:
        """What a chain starts with."""
        return self.get_tokenizer().encode(text, add_special_tokens=False) if text else []

    @property
    def has_thinking_budgets(self) -> bool:
        return self.vllm_config.reasoning_config is not None

    async def inspect(self, token_ids: list[int], num_latents: int = 0) -> tuple[list[list[float]], list[list[float]] | None]:
        """H_X (T, d) and z (N, d) of a prompt, as the worker computes them; for the parity check."""
        key = unique_id("inspect")
        work, num_values = Read(key, num_latents, keep_states=True), Verdict.num_values(self.hybrid.ladder)
        params = read_params(work, num_values, reads_all_positions=True)
        try:
            async for _ in self.run({"type": "token", "prompt_token_ids": token_ids}, params, key):
                pass
            (result, *_) = await self.collective_rpc("latentserve_inspect", args=(key,))
            return result
        finally:
            self.drop_latents(key)
