"""The passes of one question: each is one engine request, with an id, work for the worker, and its time in the record.

read      X alone; the worker turns its hidden states into a verdict and latents
answer    [X ; layout of the mode that was decided]; X comes from the prefix cache
begun     both in one, where a latent answer is likely: its first token brings the verdict, and it goes on if that is decided
"""

import asyncio
import math
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.exceptions import GenerationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.policy import Decision, Limits, Mode, Scores
from server.engine.brief import in_brief
from server.engine.chains import chain_of
from server.engine.explain import Said, explain
from server.engine.work import Forget, Mix, Overlay, Read, Think, Verdict, Work, to_extra_args
from server.http.errors import OverloadedError
from server.observe.record import Ask, Record

if TYPE_CHECKING:
    from server.engine.seam import HybridEngine

ENTROPY_LOGPROBS = 20  # the head of the distribution, enough for the entropy of a first token
_MAX_LABEL = 64
_GAVE_UP = "The engine gave up on this request while it read the question. Try again."
_FOR_READING = ("lora_request", "trace_headers", "priority", "session_id", "data_parallel_rank")


@dataclass(frozen=True, slots=True)
class Question:
    """What the serving layer asks of the engine."""

    prompt: dict[str, Any]
    token_ids: list[int]
    """X: the client's tokens."""
    params: SamplingParams
    label: str
    """The client's id of the request: for logs, not for the engine."""
    options: dict[str, Any]

    def prompt_with(self, suffix: tuple[int, ...]) -> dict[str, Any]:
        return self.prompt | {"prompt_token_ids": [*self.token_ids, *suffix]}


def unique_id(label: str) -> str:
    """An engine request's id: a client may choose the label, and two may choose the same."""
    printable = label[:_MAX_LABEL].encode("ascii", "replace").decode()
    return f"{printable}-{uuid.uuid4().hex}"


class Passes:
    """What a mode may ask of the engine for one question."""

    def __init__(self, engine: "HybridEngine", question: Question, record: Record) -> None:
        self.engine, self.question, self.record = engine, question, record
        self.token_ids: list[int] = []
        """What was answered so far; of several answers the first one."""
        self.has_given = False
        """Whether the client may have seen some of an answer that is still being checked."""
        self._key: str | None = None  # of this question's latents, in the worker
        self._begun: AsyncGenerator[RequestOutput, None] | None = None  # an answer, from its first token on
        self.said: asyncio.Future[Said | None] | None = None
        """By the latents, where that was asked."""
        self._mixed: Mix | None = None  # a chain in mixtures
        self._shared = len(question.token_ids)  # tokens of X that others may find in the prefix cache
        self._holds_permit = self._keeps_latents = self._finished = False

    @property
    def ask(self) -> Ask:
        return self.record.ask

    @property
    def limits(self) -> Limits:
        hybrid, cap = self.engine.hybrid, self.question.params.thinking_token_budget
        return self.ask.options.limits(self._may_use_latents, cap, hybrid.thinking, self.most_tokens())

    @property
    def _may_use_latents(self) -> bool:
        """Mode auto has no use for latents that no probe says when to use, unless it has no other choice."""
        hybrid = self.engine.hybrid
        return hybrid.can_think_latent and (
            self.ask.mode != Mode.AUTO or hybrid.has_probe or not hybrid.can_think_in_text or self.ask.explains
        )

    def most_tokens(self, opening: tuple[int, ...] = ()) -> int:
        """That an answer may have: what the request allows, or what the question, and what stands after it, leave free."""
        most = self.engine.model_config.max_model_len - len(self.question.token_ids) - len(opening)
        return most if self.question.params.max_tokens is None else min(most, self.question.params.max_tokens)

    @asynccontextmanager
    async def reading(self, *, begins: bool = False) -> AsyncIterator[Verdict]:
        """Wait for room for latents, and read the question. Within the context its latents are kept, until an answer that needs
        none gives the room back.

        `begins`: a latent answer is likely to follow. Where one engine request can be both, it is: then nothing is admitted
        twice, and the engine's own queue is the room.
        """
        begins = begins and self._can_begin()
        if not begins:
            await self._enter()
        try:
            yield await (self._begin() if begins else self._read())
        finally:
            await self._give_up()
            self._leave()
            if not self._finished and self._key is not None:
                self.engine.drop_latents(self._key)

    def _can_begin(self) -> bool:
        """Whether the verdict of one answer can stand in its log-probabilities, and nobody else wants its latents."""
        hybrid, params = self.engine.hybrid, self.question.params
        return (
            self.limits.cheap is Mode.LATENT
            and not self.limits.thinking.uses_latents
            and not (self.ask.only_route or hybrid.chooses(self.ask.num_latents))
            and params.n == 1
            and params.logprobs is None
            and params.structured_outputs is None  # under which there may be no first token
            and params.output_kind is not RequestOutputKind.CUMULATIVE
        )

    async def _begin(self) -> Verdict:
        """Read the question and begin the latent answer; up to its first token."""
        started, hybrid, question = time.perf_counter(), self.engine.hybrid, self.question
        number, params = hybrid.most_latents(self.ask.num_latents), self.question.params.clone()
        start = len(question.token_ids) + len(hybrid.layout.before_latents)
        work = Think(uuid.uuid4().hex, number, len(question.token_ids), start, self.ask.explains)
        params.logprobs, params.output_kind = hybrid.num_verdict_values, RequestOutputKind.DELTA
        params.extra_args = (params.extra_args or {}) | to_extra_args(work)
        block = self.engine.vllm_config.cache_config.block_size
        self._shared = (len(question.token_ids) - 1) // block * block  # the block after them is this request's own
        prompt, options = question.prompt_with(hybrid.layout.latent(number)), question.options | {"reasoning_ended": True}
        self._begun = self.engine.run(prompt, params, unique_id(question.label), **options)
        if (first := await anext(self._begun, None)) is None:
            raise GenerationError(_GAVE_UP)
        verdict = hybrid.verdict(self._logprobs_of(first))
        self._begun = _after(first, self._begun)
        self._has_read(work, verdict, started)
        return verdict

    async def _give_up(self) -> None:
        """An answer that was begun and is not wanted."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            await begun.aclose()

    async def _enter(self) -> None:
        started = time.perf_counter()
        await self.engine.room.acquire(self.question.params.n)
        self._holds_permit = True
        self.record.stages["queue"] = time.perf_counter() - started

    def _leave(self) -> None:
        if self._holds_permit:
            self._holds_permit = False
            self.engine.room.release()

    async def _read(self) -> Verdict:
        started, hybrid, question = time.perf_counter(), self.engine.hybrid, self.question
        self._key = uuid.uuid4().hex
        number = hybrid.most_latents(self.ask.num_latents) if self._may_use_latents else 0
        work = Read(self._key, number, explains=self.ask.explains)
        verdict, is_scored = Verdict(True, 0.0, 0.0), hybrid.has_probe or work.num_latents > 0
        if is_scored or hybrid.probes:
            params = read_params(work, hybrid.num_verdict_values)
            verdict = hybrid.verdict(self._logprobs_of(await self._last_of(question.prompt_with(()), params)))
        if not is_scored and hybrid.can_think_in_text:  # then the first token of a direct answer is the signal
            params = read_params(None, ENTROPY_LOGPROBS)
            values = self._logprobs_of(await self._last_of(question.prompt_with(hybrid.layout.direct), params))
            verdict = replace(verdict, scores=replace(verdict.scores, entropy=_entropy(values)))
        self._has_read(work, verdict, started)
        return verdict

    async def _last_of(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        """Of a pass that only reads."""
        prompt.pop("prompt", None)
        options = {name: self.question.options[name] for name in _FOR_READING if name in self.question.options}
        async with aclosing(self.engine.run(prompt, params, unique_id(self.question.label), **options)) as outputs:
            return [output async for output in outputs][-1]

    def _logprobs_of(self, output: RequestOutput) -> list[float]:
        """Of the first token after a question that was read; its own is the first one."""
        if not output.outputs[0].logprobs:
            raise GenerationError(_GAVE_UP)
        self._count_cached(output)
        return [entry.logprob for entry in output.outputs[0].logprobs[0].values()]

    def _has_read(self, work: Read | Think, verdict: Verdict, started: float) -> None:
        if work.explains:
            self.said = self.engine.said(work.key)  # comes while the answer is written
        self.record.scores = verdict.scores
        self.record.stages |= {
            "read": time.perf_counter() - started, "network": verdict.network_seconds, "probe": verdict.probe_seconds,
        }  # fmt: skip

    async def decide(self, decision: Decision) -> None:
        """Write down how the question is answered; `answer` follows it. Where the key may not think in text, mode auto does
        without, and a named mode is refused."""
        if decision.mode.thinks_in_text and (why := self.cannot_think()):
            decision = self.demoted(decision, why)
        if decision.mode.thinks_in_text and (reason := await self.may_not_think()):
            if self.ask.mode != Mode.AUTO:
                self.engine.refuse(reason)
            decision = self.demoted(decision, reason.reason)
        self.record.decided(self._bounded(decision), self._latents_of(decision))

    def _bounded(self, decision: Decision) -> Decision:
        """With the budget of its chain: the least that the policy, the request, and what the answer needs allow."""
        if not decision.mode.thinks_in_text:
            return decision
        if not self.engine.has_thinking_budgets:
            return replace(decision, thinking_budget=None)
        params, reserve = self.question.params, self.engine.hybrid.reserve
        bounds = [decision.thinking_budget, params.thinking_token_budget]
        if reserve:
            bounds.append(reserve.budget(self.most_tokens(self._opening(decision))))
        return replace(decision, thinking_budget=min((bound for bound in bounds if bound is not None), default=None))

    def _opening(self, decision: Decision) -> tuple[int, ...]:
        """What stands between the question and a chain in text."""
        layout = self.engine.hybrid.layout
        opening = layout.opened(self._latents_of(decision)) if decision.mode.uses_latents else layout.explicit
        return (*opening, *self.engine.encode_suffix(decision.suffix))

    @property
    def must_predict(self) -> bool:
        """Whether the length of a chain has to be known before it is written: the key has a limit, and a probe can say it."""
        quota = self.record.quota
        return quota is not None and quota.key.limits_thinking and self.engine.hybrid.has_probe

    @property
    def predicts_exits(self) -> bool:
        """Whether a chain may end early, from a share of its expected length on, which a probe can say."""
        rule = self.engine.hybrid.exit_rule(self.ask)
        return self.engine.hybrid.has_probe and rule is not None and rule.first > 0

    def predicted(self, decision: Decision) -> Decision:
        """With the budget that mode auto would give the chain, unless its key is trusted, or nothing was predicted."""
        quota, scores, calibration = self.record.quota, self.record.scores, self.engine.hybrid.router.calibration
        if quota is None or quota.key.trusted or not (scores and scores.tokens and calibration):
            return decision
        return replace(decision, thinking_budget=self.limits.budget(calibration.budget_ratio * scores.tokens))

    def cannot_think(self) -> str | None:
        """Why no chain in text can be written here; guards refuse those that are asked for by name."""
        hybrid = self.engine.hybrid
        if not hybrid.can_think_in_text:
            return "no_thinking"
        has_room = not hybrid.hides_ends and hybrid.layout.end_of_thinking is not None  # for a chain in front of a grammar
        return None if has_room or self.question.params.structured_outputs is None else "schema"

    async def why_not_think(self) -> str | None:
        """Why mode auto has to do without a chain; None where nothing stands in its way."""
        refusal = None if (why := self.cannot_think()) else await self.may_not_think()
        return refusal.reason if refusal else why

    async def may_not_think(self) -> OverloadedError | None:
        """What stands in the way of a chain in text; where nothing does, its predicted tokens are reserved."""
        if self.record.quota is None or self.ask.only_route:
            return None
        return await self.record.quota.reserve(self._predicted_tokens())

    def demoted(self, decision: Decision, reason: str) -> Decision:
        """A cheap answer instead of a chain, which is given as it comes."""
        cheap = Mode.DIRECT if decision.reason == "latents_not_finite" else self.limits.cheap
        scores = self.record.scores or Scores()
        reason = f"demoted_{reason}"
        self.engine.hybrid.metrics.demoted(reason)
        return replace(
            decision, mode=cheap, score=scores.correct(cheap), reason=reason, check=False, thinking_budget=None, suffix=""
        )

    def _predicted_tokens(self) -> float:
        """Of a chain: what the probe expects, or the longest that was seen, within what the request allows."""
        params, scores, calibration = self.question.params, self.record.scores, self.engine.hybrid.router.calibration
        longest = calibration.longest_tokens if calibration else math.inf
        expected = scores.tokens if scores and scores.tokens is not None and math.isfinite(scores.tokens) else longest
        bounds = (params.thinking_token_budget, params.max_tokens, self.engine.model_config.max_model_len)
        return params.n * min(expected, *(bound for bound in bounds if bound is not None))

    def escalate(self, decision: Decision) -> None:
        """What was answered so far is void; what follows is thought through in text."""
        self.token_ids.clear()
        if self.has_given and decision.mode.uses_latents:
            decision = replace(decision, mode=Mode.EXPLICIT)  # what follows a restart is a request of its own, without latents
        decision = self._bounded(decision)
        self.record.restarts = self.has_given
        self.record.escalate(decision, self._latents_of(decision))

    async def answer(self, params: SamplingParams | None = None) -> AsyncGenerator[RequestOutput, None]:
        """The answer as it was decided. `params`: instead of the client's."""
        decision = self.record.decision
        assert decision is not None, "decide comes before answer"
        if not decision.mode.uses_latents:
            self._leave()  # a long answer that needs no latents keeps nobody waiting
        params = params or self.question.params
        if self._begun is not None and decision.mode is Mode.LATENT and _sample_alike(params, self.question.params):
            begun, self._begun = self._begun, None
            outputs = _in_form(self._generated(decision, begun), params)
        else:
            await self._give_up()
            if decision.mode.uses_latents and self._key is None:  # begun otherwise than they are wanted
                await self._enter()
                await self._read()
            prompt, prepared, options = self._prepare(decision, params)
            chain = chain_of(self, decision, params, (prompt, prepared, options))
            written = _in_form(chain.outputs(), params) if chain else self.ask_engine(prompt, prepared, options)
            outputs = self._generated(decision, written)
        if self.ask.brief and decision.mode.thinks_in_text and params.output_kind is not RequestOutputKind.CUMULATIVE:
            outputs = in_brief(outputs, self.engine, whole)
        async with self.engine.slots.held(self._may_be_long(decision), params.n), aclosing(outputs):
            async for output in outputs:
                yield output

    @staticmethod
    def going_on(prompt: dict[str, Any], token_ids: list[int]) -> dict[str, Any]:
        """The prompt of a pass with other tokens, which its text is not that of any more."""
        return {name: value for name, value in prompt.items() if name != "prompt"} | {"prompt_token_ids": token_ids}

    def drop_latents(self) -> None:
        """Those of this question, where its next pass does not."""
        if self._key is not None:
            self.engine.drop_latents(self._key)

    def ask_engine(
        self, prompt: dict[str, Any], params: SamplingParams, options: dict[str, Any], *, is_trial: bool = False
    ) -> AsyncGenerator[RequestOutput, None]:
        """One engine request of this question. `is_trial`: what it writes is not the answer."""
        name = unique_id(self.question.label)
        if not is_trial:
            self.record.pass_id = name
        return self.engine.run(prompt, params, name, **options)

    def _may_be_long(self, decision: Decision) -> bool:
        """Whether this is a chain that nobody predicted to be an ordinary one."""
        calibration, scores = self.engine.hybrid.router.calibration, self.record.scores
        if not decision.mode.thinks_in_text:
            return False
        return calibration is None or scores is None or scores.tokens is None or not scores.tokens <= calibration.longest_tokens

    async def _generated(
        self, decision: Decision, outputs: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        """What the engine answers, counted."""
        record, hybrid, started = self.record, self.engine.hybrid, time.perf_counter()
        async with aclosing(outputs):
            async for output in outputs:
                if decision.mode.uses_latents and any(hybrid.layout.placeholder in o.token_ids for o in output.outputs):
                    raise GenerationError("The engine lost the latents of this request. Try again.")
                output.prompt_token_ids = self.question.token_ids  # the client's tokens: what usage counts
                self._count_cached(output)
                for choice in output.outputs:
                    is_first = choice.index == 0
                    record.generated(list(choice.token_ids), hybrid.end_of_thinking, is_first_choice=is_first)
                    self.token_ids += choice.token_ids if is_first else ()
                self._finished = output.finished and not self._keeps_latents
                if output.finished and self.said is not None and decision.mode.uses_latents:
                    await explain(self)
                if output.finished and self._mixed is not None:
                    record.mixed(await self.engine.how_it_was_mixed(self._mixed.key))
                record.answered = time.perf_counter()
                record.stages["answer"] = record.answered - started
                yield output

    def _latents_of(self, decision: Decision) -> int:
        if not decision.mode.uses_latents:
            return 0
        asked, hybrid = self.ask.num_latents, self.engine.hybrid
        # How many suffice was observed on answers, not on chains that go on.
        return hybrid.most_latents(asked) if decision.mode.thinks_in_text else hybrid.latents_for(asked, self.record.scores)

    async def read_changed(self, token_ids: list[int]) -> Said | None:
        """What the latents of another question say; nothing of them is kept."""
        work = Read(uuid.uuid4().hex, self.record.latent_tokens, explains=True)
        prompt = self.question.prompt | {"prompt_token_ids": token_ids}
        try:
            await self._last_of(prompt, read_params(work, self.engine.hybrid.num_verdict_values))
        finally:
            self.engine.drop_latents(work.key)
        self.record.changed_tokens += len(token_ids)
        return await self.engine.said(work.key)

    def nothing(self) -> RequestOutput:
        """The answer to a question that was only to be routed."""
        self._finished = False
        empty = CompletionOutput(0, text="", token_ids=[], cumulative_logprob=None, logprobs=None, finish_reason="stop")
        return RequestOutput(self.question.label, None, self.question.token_ids, None, [empty], finished=True)

    def _prepare(self, decision: Decision, params: SamplingParams) -> tuple[dict[str, Any], SamplingParams, dict[str, Any]]:
        """(prompt, parameters, options) of the pass that answers."""
        layout, options, params = self.engine.hybrid.layout, self.question.options, params.clone()
        work: Work | None = Forget(self._key) if self._key else None  # latents that the decision does not want
        number = self.record.latent_tokens
        if decision.mode.thinks_in_text:
            suffix = self._opening(decision)
            if decision.thinking_budget is not None:  # vLLM counts from the open tag on, which may stand in the prompt
                params.thinking_token_budget = decision.thinking_budget + max(0, len(suffix) - 1)
            if decision.temperature is not None and not self.ask.names_temperature:
                params.temperature = decision.temperature
        else:
            options = options | {"reasoning_ended": True}  # a grammar constrains from the first token on
            suffix = layout.latent(number) if decision.mode.uses_latents else layout.direct
        if decision.mode.uses_latents:
            assert self._key is not None, "latents are read before they answer"
            # A doubtful answer may give way to one that thinks on from the same latents.
            self._keeps_latents = decision.check and self.limits.thinking.uses_latents
            work = Overlay(
                self._key, number, len(self.question.token_ids) + len(layout.before_latents), params.n + self._keeps_latents
            )
        if self.ask.soft is not None and decision.mode is Mode.EXPLICIT:
            start, seed = len(self.question.token_ids) + len(suffix), params.seed
            self._mixed = work = Mix(
                uuid.uuid4().hex, start, *self.engine.hybrid.tags, secrets.randbits(63) if seed is None else seed,
                self.ask.soft.model_dump(),
            )  # fmt: skip
        if work:
            params.extra_args = (params.extra_args or {}) | to_extra_args(work)
        return self.question.prompt_with(suffix), params, options

    def _count_cached(self, output: RequestOutput) -> None:
        """What the client's prompt found in the cache, and left there: the first pass knows; later ones find what it left."""
        length, record = len(self.question.token_ids), self.record
        if record.cached_tokens is None and output.num_cached_tokens is not None:
            record.cached_tokens = min(output.num_cached_tokens, length)
            created = min(output.num_cache_creation_tokens or 0, self._shared - record.cached_tokens)
            record.cache_creation_tokens = max(0, created)
        output.num_cached_tokens = record.cached_tokens
        if output.num_cache_creation_tokens is not None:
            output.num_cache_creation_tokens = record.cache_creation_tokens


def read_params(work: Read | None, logprobs: int) -> SamplingParams:
    """Of a pass that only reads."""
    extra_args = to_extra_args(work) if work else None
    return SamplingParams(max_tokens=1, temperature=0, detokenize=False, logprobs=logprobs, extra_args=extra_args)


async def _after(first: RequestOutput, outputs: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of which the first one is known."""
    async with aclosing(outputs):
        yield first
        async for output in outputs:
            yield output


def _sample_alike(one: SamplingParams, other: SamplingParams) -> bool:
    """Whether they differ at most in the form of the answer."""
    forms = [params.clone() for params in (one, other)]
    for form in forms:
        form.logprobs, form.output_kind = None, RequestOutputKind.DELTA
    return forms[0] == forms[1]


async def _in_form(outputs: AsyncGenerator[RequestOutput, None], params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
    """An answer that was begun, as it is wanted: in parts or as a whole, with log-probabilities or without."""
    held = list[RequestOutput]()
    async with aclosing(outputs):
        async for output in outputs:
            if params.logprobs is None:
                for choice in output.outputs:
                    choice.logprobs = choice.cumulative_logprob = None
            if params.output_kind is RequestOutputKind.DELTA:
                yield output
            else:
                held.append(output)
    if held:
        yield whole(held)


def whole(parts: list[RequestOutput]) -> RequestOutput:
    """The parts of a stream as one output."""
    first, *rest = parts
    for part in rest:
        first.add(part, aggregate=True)
    return first


def finite(decision: Decision, verdict: Verdict) -> Decision:
    """Explicit thinking where the latents cannot be used."""
    if decision.mode.uses_latents and not verdict.latents_are_finite:
        return replace(decision, mode=Mode.EXPLICIT, reason="latents_not_finite", check=False)
    return decision


def _entropy(logprobs: list[float]) -> float:
    return -sum(math.exp(value) * value for value in logprobs if value > -math.inf)
