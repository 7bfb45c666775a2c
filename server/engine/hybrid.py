"""HybridEngine: vLLM's AsyncLLM with one seam, `generate`, where a request takes its way.

read        prefill X once; in the worker: final hidden states → probe, reasoning network → z
decide      a policy: a pure function of the scores and the limits
answer      [X ; layout of the mode], X from the prefix cache
check       (auto) a cheap answer that is doubtful is replaced by an explicit one
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import GenerationError, VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from reasoning_net.bundle import Bundle
from reasoning_net.layout import LayoutIds
from reasoning_net.rollouts import least_certain
from router.policy import Decision, Limits, Mode, RouterError, Scores, requested
from router.router import Router
from server.engine.prompt import ROLE_KEY, Role, Verdict
from server.engine.shadow import Shadows
from server.observe.metrics import FALLBACKS, Metrics
from server.route import Route, current_route

_CHECKED_TOKENS = 64  # of a cheap answer; a stream waits for them
_ENTROPY_LOGPROBS = 20  # the head of the distribution, enough for the entropy of a first token


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What makes this engine hybrid: everything that `generate` needs beside vLLM."""

    layout: LayoutIds
    router: Router
    num_latents: int
    """Latents per question by default; 0 without a reasoning network."""
    max_latents: int
    has_probe: bool
    reads_all_positions: bool
    """Step 1 must compute every position of X, so it cannot take X from the prefix cache."""
    cache_salt: str | None
    metrics: Metrics

    @property
    def can_think_latent(self) -> bool:
        return self.max_latents > 0


@dataclass(frozen=True, slots=True)
class _Request:
    """One call of `generate` that is routed."""

    prompt: dict[str, Any]
    token_ids: list[int]
    """X: the client's tokens."""
    sampling_params: SamplingParams
    request_id: str
    key: str
    """Of its latents, in the worker."""
    route: Route
    kwargs: dict[str, Any]

    def prompt_with(self, suffix: tuple[int, ...]) -> dict[str, Any]:
        return self.prompt | {"prompt_token_ids": [*self.token_ids, *suffix]}


def _nothing(request: _Request) -> RequestOutput:
    """The answer to a request that was only to be routed."""
    empty = CompletionOutput(0, text="", token_ids=[], cumulative_logprob=None, logprobs=None, finish_reason="stop")
    return RequestOutput(request.request_id, None, request.token_ids, None, [empty], finished=True)


class HybridEngine(AsyncLLM):
    """An engine client: vLLM's serving layer does not know that it is not a plain AsyncLLM."""

    hybrid: Hybrid
    _shadows: Shadows | None = None

    async def install(
        self,
        bundle: Bundle | None,
        layout: LayoutIds,
        metrics: Metrics,
        *,
        num_latents: int | None = None,
        policy: str | None = None,
        entropy_threshold: float = 0.5,
        shadow_share: float = 0.0,
    ) -> None:
        """Load the bundle in the worker and switch hybrid reasoning on. Called once, before the first request.

        Raises `RouterError` for a policy that this bundle cannot have.
        """
        manifest = bundle.manifest if bundle else None
        net = manifest.reasoning_net if manifest else None
        probe = manifest.probe if manifest else None
        max_latents = net.num_latent_tokens if net else 0
        conditions_on_all = bool(net and net.reads_all_positions) or bool(probe and set(probe.features) != {"last"})
        router = Router(
            manifest.calibration if manifest else None,
            policy=policy,
            entropy_threshold=entropy_threshold,
            has_entropy=probe is None and net is None,
        )
        self.hybrid = Hybrid(
            layout=layout,
            router=router,
            num_latents=num_latents or (manifest.num_latent_tokens if manifest and manifest.num_latent_tokens else max_latents),
            max_latents=max_latents,
            has_probe=probe is not None,
            reads_all_positions=conditions_on_all,
            cache_salt=bundle.fingerprint() if bundle and net else None,
            metrics=metrics,
        )
        metrics.watch_drift(lambda: router.drift.psi)
        metrics.watch_queue(lambda: self._waiting)
        if shadow_share:
            self._shadows = Shadows(self, shadow_share, metrics, self.get_tokenizer().decode)
        self._lost = self._waiting = 0
        # z is held from step 1 to the end of step 3: as many requests as the engine runs at once, and as many again waiting.
        permits = 2 * self.vllm_config.scheduler_config.max_num_seqs
        self._latent_permits = asyncio.Semaphore(permits)
        await self.collective_rpc("latentserve_install", args=(str(bundle.directory) if bundle else None, permits))

    def shutdown(self, timeout: float | None = None) -> None:
        if self._shadows:
            self._shadows.close()
        super().shutdown(timeout)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As AsyncLLM.generate; the current route, if there is one, says in which mode to answer, and learns what happened."""
        if ROLE_KEY in (sampling_params.extra_args or {}):
            raise VLLMValidationError(f"vllm_xargs must not contain {ROLE_KEY!r}.", parameter="vllm_xargs")
        route = current_route.get()
        token_ids = self._client_token_ids(prompt)
        prompt = self._salted(prompt)
        if route is None or token_ids is None:
            outputs = super().generate(prompt, sampling_params, request_id, **kwargs)
        else:
            route.request_id = request_id
            self._check(route, token_ids, sampling_params)
            if not route.escalated:
                route.stages.gateway, route.prompt_tokens = time.perf_counter() - route.started, len(token_ids)
            key = f"{request_id}-{time.monotonic_ns()}"
            request = _Request(prompt, token_ids, sampling_params, request_id, key, route, kwargs)
            # After an escalation all is decided, and the doubtful answer was streamed.
            outputs = self._answer(request) if route.escalated else self._routed(request)
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    async def _routed(self, request: "_Request") -> AsyncGenerator[RequestOutput, None]:
        """Read, decide, answer."""
        route = request.route
        if route.requested not in (Mode.LATENT, Mode.AUTO) and not route.only_route:
            self._settle(route, requested(route.requested, Scores()))
            async with aclosing(self._answer(request)) as outputs:
                async for output in outputs:
                    yield output
            return
        finished = False
        waiting_since = time.perf_counter()
        self._waiting += 1
        try:
            await self._latent_permits.acquire()
        finally:
            self._waiting -= 1
        route.stages.queue = time.perf_counter() - waiting_since
        holds_permit = True
        try:
            decision = await self._route(request)
            if route.only_route:
                yield _nothing(request)
                return
            if route.mode is not Mode.LATENT:  # a long answer that needs no latents keeps nobody waiting
                self._latent_permits.release()
                holds_permit = False
            answered: list[int] = []
            answers = self._checked(request) if decision.check else self._answer(request)
            async with aclosing(answers) as outputs:
                async for output in outputs:
                    finished = output.finished
                    if holds_permit and route.escalated:
                        self._latent_permits.release()
                        holds_permit = False
                    if self._shadows and route.requested is Mode.AUTO:
                        answered += output.outputs[0].token_ids
                    yield output
            if self._shadows and answered and not route.restarts:
                self._shadows.consider(request.prompt, request.sampling_params, route, answered)
        finally:
            if holds_permit:
                self._latent_permits.release()
            if not finished:
                self._release(request.key)

    async def _route(self, request: "_Request") -> Decision:
        """Read and decide."""
        route, hybrid = request.route, self.hybrid
        verdict = await self._read(request)
        route.scores = scores = verdict.scores
        if route.requested is not Mode.AUTO:
            decision = requested(route.requested, scores)
        else:
            # An operator may switch the policy before the answer is checked.
            route.policy, limits = hybrid.router.policy_for(route.options), self._limits(request)
            decision = route.policy.decide(scores, limits)
            known = scores.correct(limits.cheap)
            if known is not None and math.isfinite(known):
                hybrid.router.drift.add(known)
        decision = self._safe(decision, verdict)
        if request.sampling_params.n > 1:
            decision = replace(decision, check=False)  # several answers have no one confidence
        self._settle(route, decision)
        return decision

    def _limits(self, request: "_Request") -> Limits:
        options, cap = request.route.options, request.sampling_params.thinking_token_budget
        return options.limits(self.hybrid.can_think_latent, cap)

    async def _checked(self, request: "_Request") -> AsyncGenerator[RequestOutput, None]:
        """A cheap answer, given when its confidence suffices; else an explicit one. Nothing is given before that is known.

        A token that is too uncertain ends the attempt at once. With the option `early` the answer is given as it comes, and
        what must follow is left to who reads `route.restarts`.
        """
        route, held, tokens_left = request.route, list[RequestOutput](), _CHECKED_TOKENS
        assert route.scores is not None, "an answer is checked after its question was scored"
        assert route.policy is not None, "a policy asked for the check"
        has_begun = False
        params, limits, route.confidence = request.sampling_params.clone(), self._limits(request), 1.0
        wants_logprobs, params.logprobs = params.logprobs is not None, params.logprobs or 0
        async with aclosing(self._answer(replace(request, sampling_params=params))) as outputs:
            async for output in outputs:
                (choice,) = output.outputs
                least = least_certain(choice.logprobs[: max(0, tokens_left)]) if choice.logprobs else None
                if not wants_logprobs:
                    choice.logprobs = None
                if least is not None:
                    tokens_left -= len(choice.token_ids)
                    route.confidence = min(route.confidence, least)
                decision = route.policy.check(route.scores, route.confidence, limits)
                if decision.mode is Mode.EXPLICIT:
                    break
                held.append(output)
                if output.finished or tokens_left <= 0 or route.options.early:
                    self._settle(route, decision)
                    has_begun = True
                    for kept in held:
                        yield kept
                    held.clear()
        escalated = decision.mode is Mode.EXPLICIT
        self.hybrid.metrics.checked(escalated=escalated)
        if escalated:
            route.in_flight.discard(request.request_id)
            route.escalated, route.discarded_tokens, route.generated_tokens = True, route.generated_tokens, 0
            route.stages.discarded, route.stages.answer = route.stages.answer, 0.0
            self._settle(route, decision)
            if has_begun:
                route.restarts = True
                return
            async with aclosing(self._answer(request)) as outputs:
                async for output in outputs:
                    yield output

    def _safe(self, decision: Decision, verdict: Verdict) -> Decision:
        """Explicit thinking where the latents cannot be used, counted."""
        if decision.mode is Mode.LATENT and not verdict.latents_are_finite:
            decision = replace(decision, mode=Mode.EXPLICIT, reason="latents_not_finite", check=False)
        if decision.reason in FALLBACKS:
            self.hybrid.metrics.fallback(decision.reason)
        return decision

    def _client_token_ids(self, prompt: Any) -> list[int] | None:
        """X of a token prompt that may be routed; None for what is passed on as it is."""
        if not isinstance(prompt, dict) or "prompt_token_ids" not in prompt:
            return None
        token_ids = list(prompt["prompt_token_ids"])
        placeholder = self.hybrid.layout.placeholder
        if placeholder is not None and placeholder in token_ids:
            # Its rows in the prefix cache belong to latents.
            raise VLLMValidationError(
                f"The prompt contains the token {placeholder}, which is reserved for latents. Remove it.", parameter="prompt"
            )
        return token_ids if prompt.get("type", "token") == "token" else None

    def _salted(self, prompt: Any) -> Any:
        """The prompt with the bundle in its cache salt: blocks that hold latents are valid for one bundle only.

        The count of lost latents is part of the salt, so that blocks of a request that ran without its latents are never read.
        """
        if self.hybrid.cache_salt is None or not isinstance(prompt, dict):
            return prompt
        return prompt | {"cache_salt": f"{self.hybrid.cache_salt}-{self._lost}-{prompt.get('cache_salt') or ''}"}

    def _check(self, route: Route, token_ids: list[int], sampling_params: SamplingParams) -> None:
        """Refuse what cannot be answered in the requested mode, before any work is done."""
        hybrid = self.hybrid
        if route.requested is Mode.LATENT and not hybrid.can_think_latent:
            raise VLLMValidationError(
                "This server has no reasoning network, so it cannot answer in latent mode. Start it with --bundle and a "
                "bundle that has one (train it with `latentserve train sft`), or use mode=auto, explicit or direct.",
                parameter="mode",
            )
        try:
            self.hybrid.router.policy_for(route.options)
        except RouterError as error:
            raise VLLMValidationError(str(error), parameter="router") from None
        if route.num_latents is not None and not 0 < route.num_latents <= hybrid.max_latents:
            raise VLLMValidationError(
                f"num_latent_tokens must be between 1 and {hybrid.max_latents}, not {route.num_latents}.",
                parameter="num_latent_tokens",
            )
        if sampling_params.prompt_logprobs is not None and route.requested is not Mode.EXPLICIT:
            raise VLLMValidationError(
                "prompt_logprobs needs mode=explicit: in the other modes the prompt is not all the client's.",
                parameter="prompt_logprobs",
            )
        placeholder = hybrid.layout.placeholder
        if placeholder is not None and placeholder in (sampling_params.allowed_token_ids or sampling_params.logit_bias or ()):
            raise VLLMValidationError(f"The token {placeholder} is reserved for latents.", parameter="logit_bias")
        longest = max(len(hybrid.layout.direct), len(hybrid.layout.explicit))
        if hybrid.can_think_latent and route.requested in (Mode.LATENT, Mode.AUTO):
            longest = len(hybrid.layout.latent(route.num_latents or hybrid.num_latents))
        limit = self.model_config.max_model_len
        if len(token_ids) + longest >= limit:
            raise VLLMValidationError(
                f"The prompt has {len(token_ids)} tokens and mode={route.requested} adds up to {longest}: more than the "
                f"model's {limit} with room for an answer. Shorten the prompt, or ask for fewer latents.",
                parameter="messages",
            )

    async def _read(self, request: "_Request") -> Verdict:
        """Step 1: one prefill, whose hidden states the worker turns into scores and latents."""
        started = time.perf_counter()
        hybrid, route = self.hybrid, request.route
        num_latents = (route.num_latents or hybrid.num_latents) if hybrid.can_think_latent else 0
        has_verdict = hybrid.has_probe or num_latents > 0
        params = self._read_params(
            Role("read", request.key, num_latents), Verdict.NUM_VALUES if has_verdict else _ENTROPY_LOGPROBS
        )
        # Without a probe the first token of a direct answer is the signal.
        prompt = request.prompt_with(() if has_verdict else hybrid.layout.direct)
        prompt.pop("prompt", None)
        options = {
            name: request.kwargs[name] for name in ("lora_request", "trace_headers", "priority") if name in request.kwargs
        }
        async with aclosing(super().generate(prompt, params, f"{request.request_id}-read", **options)) as outputs:
            route.in_flight.add(f"{request.request_id}-read")
            async for output in outputs:
                last = output
            route.in_flight.discard(f"{request.request_id}-read")
        logprobs = last.outputs[0].logprobs
        assert logprobs, "step 1 asks for log-probabilities"
        values = [entry.logprob for entry in logprobs[0].values()]
        route.stages.read = time.perf_counter() - started
        if not has_verdict:
            return Verdict(True, 0.0, 0.0, Scores(entropy=-sum(math.exp(v) * v for v in values if v > -math.inf)))
        verdict = Verdict.of(values)
        route.stages.network, route.stages.probe = verdict.network_seconds, verdict.probe_seconds
        return verdict

    def _read_params(self, role: Role, logprobs: int = Verdict.NUM_VALUES) -> SamplingParams:
        skip = True if self.hybrid.reads_all_positions or role.keep_states else None
        return SamplingParams(
            max_tokens=1,
            temperature=0,
            detokenize=False,
            logprobs=logprobs,
            skip_reading_prefix_cache=skip,
            extra_args=role.extra_args(),
        )

    async def inspect(self, token_ids: list[int], num_latents: int = 0) -> tuple[list[list[float]], list[list[float]] | None]:
        """H_X (T, d) and z (N, d) of a prompt, as the worker computes them; for the parity check."""
        key = f"inspect-{time.monotonic_ns()}"
        role = Role("read", key, num_latents, keep_states=True)
        params = self._read_params(role)
        prompt = self._salted({"type": "token", "prompt_token_ids": token_ids})
        try:
            async for _ in super().generate(prompt, params, key):
                pass
            (result, *_) = await self.collective_rpc("latentserve_inspect", args=(key,))
            return result
        finally:
            self._release(key)

    def _settle(self, route: Route, decision: Decision) -> None:
        route.decision = decision
        is_latent = decision.mode is Mode.LATENT
        route.latent_tokens = (route.num_latents or self.hybrid.num_latents) if is_latent else 0

    async def _answer(self, request: "_Request") -> AsyncGenerator[RequestOutput, None]:
        """Step 3: the ordinary request, with the layout of the chosen mode after X."""
        layout, route, params, kwargs = self.hybrid.layout, request.route, request.sampling_params, request.kwargs
        if route.mode is Mode.LATENT:
            suffix = layout.latent(route.latent_tokens)
            start = len(request.token_ids) + len(layout.before_latents)
            role = Role("answer", request.key, route.latent_tokens, start, params.n)
        else:
            suffix = layout.direct if route.mode is Mode.DIRECT else (*layout.explicit, *self._thinking_suffix(route))
            role = Role("forget", request.key, 0)  # latents that step 1 computed and the decision does not want
        if route.requested in (Mode.LATENT, Mode.AUTO):
            params.extra_args = (params.extra_args or {}) | role.extra_args()
        if route.mode is not Mode.EXPLICIT:
            kwargs = kwargs | {"reasoning_ended": True}  # a grammar constrains from the first token on
        elif route.decision:
            if route.decision.thinking_budget is not None and self.vllm_config.reasoning_config is not None:
                params.thinking_token_budget = route.decision.thinking_budget
            if route.decision.temperature is not None and not route.names_temperature:
                params.temperature = route.decision.temperature
        started = time.perf_counter()
        outputs = super().generate(request.prompt_with(suffix), params, request.request_id, **kwargs)
        async with aclosing(outputs):
            route.in_flight.add(request.request_id)
            async for output in outputs:
                if output.finished:
                    route.in_flight.discard(request.request_id)
                if route.mode is Mode.LATENT and any(layout.placeholder in o.token_ids for o in output.outputs):
                    self._lost += 1
                    raise GenerationError("The engine lost the latents of this request. Try again.")
                output.prompt_token_ids = request.token_ids  # the client's tokens: what usage counts
                self._count(route, output)
                route.answered = time.perf_counter()
                route.stages.answer = route.answered - started
                yield output

    def _count(self, route: Route, output: RequestOutput) -> None:
        """Generated tokens, and of several answers those of the first one's chain."""
        config = self.vllm_config.reasoning_config
        end = (config.natural_reasoning_end_token_ids or [None])[-1] if config else None
        for choice in output.outputs:
            route.generated_tokens += len(choice.token_ids)
            if choice.index == 0 and route.thinks_in_text and not route.chain_has_ended:
                tokens = list(choice.token_ids)
                route.chain_has_ended = end in tokens
                route.thinking_tokens += tokens.index(end) + 1 if route.chain_has_ended else len(tokens)

    def _thinking_suffix(self, route: Route) -> list[int]:
        if route.decision is None or not route.decision.suffix:
            return []
        return self.get_tokenizer().encode(route.decision.suffix, add_special_tokens=False)

    def _release(self, key: str) -> None:
        """Drop latents that nobody will ask for, without waiting."""
        task = asyncio.ensure_future(self.collective_rpc("latentserve_drop", args=([key],)))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
