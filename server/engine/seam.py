"""HybridEngine: vLLM's AsyncLLM with one seam, `generate`, which every request passes, whatever route it came by.

guard     what may not enter (`guards`)
mode      one file each in `modes`: which passes are made, and what is given of them
passes    engine requests (`passes`), with work for the worker (`worker`)
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, NoReturn

from vllm import SamplingParams
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from reasoning_net.boundaries import Boundaries, literal_tokens
from reasoning_net.bundle import Bundle
from reasoning_net.layout import NO_THINKING, LayoutIds
from reasoning_net.lens import whole_numbers
from router.exits import ExitRule, Exits
from router.helper import HelpRule
from router.policy import Decision, Mode, NumLatents, Scores
from router.router import Router
from router.user_probe import ProbeFile, output_names
from server.engine import modes
from server.engine.budgets import Reserve, reserve_of
from server.engine.errors import ConfigurationError
from server.engine.explain import Said
from server.engine.guards import guard_ask, guard_encodable, guard_only_text, guard_output, guard_params, guard_prompt
from server.engine.helper import Helper
from server.engine.pace import Pace
from server.engine.passes import Passes, Question, finite, read_params, unique_id
from server.engine.shadow import Shadows
from server.engine.work import Read, TokenKinds, Verdict
from server.http.errors import OverloadedError
from server.http.keys import Key, client_key, salt_of
from server.observe.metrics import Metrics
from server.observe.record import Ask, Record, current

_REFUSED = "Call to collective_rpc method failed: "  # and then why, in the words of the worker


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
    metrics: Metrics
    can_think_in_text: bool
    """Whether the base writes chains: by itself, or by a thinking prompt."""
    end_of_thinking: int | None
    """The token that ends a chain; None where that is not one token."""
    exits: Exits
    """Whose chains may end early, where a request does not say."""
    can_read_latents: bool
    """Whether some tokens of the base are whole numbers, which latents can be read by."""
    hides_ends: bool
    """Whether chains end with several tokens: no grammar begins after them."""
    can_close: bool
    """Whether the worker may close a chain: one token does it, and a step samples one a request (no drafts)."""
    can_mix: bool
    """Whether chains may be thought in mixtures of tokens."""
    help: HelpRule | None
    """By which a helper writes steps of chains, where a request does not say; None without one."""
    tags: tuple[int | None, int | None]
    """The one token that opens thinking, and the one that closes it; None where that is not one token."""
    reserve: Reserve | None = None
    """What chains leave of a reply to its answer."""
    probes: tuple[ProbeFile, ...] = ()
    """Of the operator's own."""

    @property
    def can_think_latent(self) -> bool:
        return self.max_latents > 0

    @property
    def ends_chains(self) -> bool:
        """Whether one token opens a chain, and one ends it."""
        return None not in self.tags

    @property
    def can_explain(self) -> bool:
        """Whether it can be said what latents say."""
        return self.can_think_latent and self.can_read_latents

    @property
    def num_verdict_values(self) -> int:
        return Verdict.num_values(self.ladder, output_names(self.probes))

    def verdict(self, logprobs: list[float]) -> Verdict:
        """From the log-probabilities of the first token after a question that was read."""
        return Verdict.of(logprobs, self.ladder, output_names(self.probes))

    def most_latents(self, asked: NumLatents | None) -> int:
        """That may stand in for the chain."""
        return asked if isinstance(asked, int) else self.num_latents

    def chooses(self, asked: NumLatents | None) -> bool:
        """Whether the number of latents depends on the question."""
        return asked == "auto" or (asked is None and self.chooses_latents)

    def latents_for(self, asked: NumLatents | None, scores: Scores | None) -> int:
        """As many as a question is answered with: those asked for, or as few as suffice."""
        most, calibration = self.most_latents(asked), self.router.calibration
        if scores is None or calibration is None or not self.chooses(asked):
            return most
        return scores.fewest_latents(most, calibration.latent_loss)

    def exit_rule(self, ask: Ask) -> ExitRule | None:
        """By which a chain may end early: the request's, or the calibrated one."""
        if isinstance(ask.exit, ExitRule):
            return ask.exit
        calibration = self.router.calibration
        found = calibration.exit if calibration else None
        found = None if found and found.closes and not self.can_close else found
        if ask.exit is None and self.exits == "auto":
            return found if ask.mode == Mode.AUTO else None
        may = self.exits == "always" if ask.exit is None else ask.exit
        return (found or ExitRule()) if may else None

    def help_rule(self, ask: Ask) -> HelpRule | None:
        """By which a helper writes steps of a chain: the request's, within what the server's costs at most, or the server's."""
        if ask.soft is not None or ask.help is False:
            return None
        return ask.help.within(self.help) if isinstance(ask.help, HelpRule) and self.help else self.help

    def after_chain(self, token_ids: list[int]) -> list[int]:
        """Of an answer: what follows a chain, if there is one."""
        end = self.end_of_thinking
        return token_ids[token_ids.index(end) + 1 :] if end in token_ids else token_ids

    def longest_layout(self, num_latents: NumLatents | None, *, may_be_latent: bool) -> int:
        """Tokens that the longest layout adds to X."""
        longest = max(len(self.layout.direct), len(self.layout.explicit))
        if self.can_think_latent and may_be_latent:
            longest = max(longest, len(self.layout.latent(self.most_latents(num_latents))))
        return longest


def _note(hybrid: Hybrid) -> str | None:
    """What keeps mode auto from its choice."""
    if not hybrid.can_think_in_text:
        return f"{NO_THINKING} Until then mode auto answers {'latent' if hybrid.can_think_latent else 'direct'}."
    if hybrid.can_think_latent and not hybrid.has_probe:
        return (
            "The bundle has a network and no probe, so mode auto goes by the entropy of a direct answer's first token and uses "
            "no latents: they are for mode latent. A probe takes minutes: `latentserve router fit`."
        )
    return None


class Room(asyncio.Semaphore):
    """For so many requests; and how many answers wait for it."""

    waiting = 0

    async def acquire(self, answers: int = 1) -> bool:  # type: ignore[override]
        self.waiting += answers
        try:
            return await super().acquire()
        finally:
            self.waiting -= answers


class Slots:
    """For chains that may be long: they share some of the engine's places, so that others keep their latency."""

    def __init__(self, number: int) -> None:
        self._room = Room(number)

    @property
    def waiting(self) -> int:
        return self._room.waiting

    @asynccontextmanager
    async def held(self, is_needed: bool, answers: int = 1) -> AsyncIterator[None]:
        if not is_needed:
            yield
            return
        await self._room.acquire(answers)
        try:
            yield
        finally:
            self._room.release()


class HybridEngine(AsyncLLM):
    """An engine client: vLLM's serving layer does not know that it is not a plain AsyncLLM."""

    hybrid: Hybrid
    room: Room
    slots: Slots
    load: Callable[[], float] = staticmethod(lambda: 0.0)
    """Share of the room for requests that is taken, as the wire counts."""
    helper: Helper | None = None
    """A stronger model, on another server."""
    pace: Pace | None = None
    """None where vLLM keeps no statistics."""
    _shadows: Shadows | None = None

    async def install(
        self, bundle: Bundle | None, layout: LayoutIds, router: Router, metrics: Metrics, *,
        num_latents: NumLatents | None = None, shadow_share: float = 0.0, long_slots: int | None = None,
        max_thinking_tokens: int | None = None, exits: Exits = "auto", answer_reserve_tokens: int | None = None,
        probes: tuple[ProbeFile, ...] = (), soft_thinking: bool = False, helper: Helper | None = None,
    ) -> None:  # fmt: skip
        """Switch hybrid reasoning on, with the bundle that the worker has loaded. Called once, before the first request."""
        manifest = bundle.manifest if bundle else None
        net, probe = (manifest.reasoning_net, manifest.probe) if manifest else (None, None)
        max_latents = net.num_latent_tokens if net else 0
        served = manifest.num_latent_tokens if manifest and manifest.num_latent_tokens else max_latents
        config = self.vllm_config.reasoning_config
        end = (config.natural_reasoning_end_token_ids if config else None) or [None]
        start = (config.reasoning_start_token_ids if config else None) or [None]
        tokenizer = self.get_tokenizer()
        numbers = whole_numbers(tokenizer)
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
            metrics=metrics,
            can_think_in_text=layout.thinks_in_text,
            end_of_thinking=end[0] if len(end) == 1 else None,
            exits=exits,
            can_read_latents=bool(numbers),
            hides_ends=len(end) > 1,
            can_close=len(end) == 1 and end[0] is not None and self.vllm_config.speculative_config is None,
            can_mix=soft_thinking,
            help=helper.rule if helper else None,
            tags=(start[0] if len(start) == 1 else None, end[0] if len(end) == 1 else None),
            reserve=reserve_of(config, answer_reserve_tokens),
            probes=probes,
        )
        # Latents are held from reading to the end of the answer: of what the engine runs at once, and of as many again.
        self.room = Room(2 * self.vllm_config.scheduler_config.max_num_seqs)
        self.slots = Slots(long_slots or max(1, self.vllm_config.scheduler_config.max_num_seqs // 2))
        router.note = _note(self.hybrid)
        self._max_thinking, self.helper = max_thinking_tokens, helper
        metrics.watch_router(router)
        metrics.watch_held(lambda: self.held)
        if shadow_share:
            self._shadows = Shadows(self, shadow_share, metrics, tokenizer.decode)
        literal = literal_tokens(tokenizer) if soft_thinking else []
        kinds = TokenKinds(numbers, literal, sorted(self.boundaries.breaks), sorted(self.boundaries.blank))
        try:
            await self.collective_rpc("latentserve_install", args=(asdict(kinds),))
        except Exception as error:  # vLLM's own class for whatever a worker raises
            raise ConfigurationError(str(error).removeprefix(_REFUSED)) from error
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
        self._check_queue()
        token_ids = guard_prompt(prompt, self.hybrid.layout.placeholder)
        guard_params(sampling_params, self.hybrid.layout.placeholder)
        guard_encodable(prompt, sampling_params, options)
        key, record = client_key.get(), current.get()
        if key is not None:
            prompt = prompt | {"cache_salt": salt_of(key, prompt.get("cache_salt"))}
        self._cap_thinking(sampling_params, key)
        is_text = prompt.get("type", "token") == "token"
        routed = record if record is not None and not record.ask.is_plain else None
        if routed and not is_text:
            guard_only_text(routed.ask)
            routed.decided(Decision(Mode.EXPLICIT, None, None, "not_text"))
        if routed and is_text:
            guard_ask(routed.ask, self.hybrid, token_ids, sampling_params, self.model_config.max_model_len)
            outputs = self._routed(Question(prompt, token_ids, sampling_params.clone(), request_id, options), routed)
        else:
            outputs = self._plain(prompt, token_ids, sampling_params, unique_id(request_id), options, record)
        if record is not None:
            record.outputs.append(outputs)
        async with aclosing(outputs):
            async for output in outputs:
                guard_output(output, sampling_params)
                yield output

    def _cap_thinking(self, params: SamplingParams, key: Key | None) -> None:
        """What the server, or the key, lets a chain cost at most; after the cut the model answers."""
        caps = [cap for cap in (self._max_thinking, key.max_thinking_tokens if key else None) if cap is not None]
        if caps and self.has_thinking_budgets:
            given = params.thinking_token_budget
            params.thinking_token_budget = min([*caps, *([] if given is None or given < 0 else [given])])

    @property
    def held(self) -> int:
        """Answers that wait in front of the engine's queue: for room for latents, or for a long chain."""
        return self.room.waiting + self.slots.waiting

    @property
    def waiting(self) -> int:
        """Those, and what waits in the engine's queue."""
        return self.held + (self.pace.waiting if self.pace else 0)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Of a pass: a request that was admitted is never refused between its passes. The wire counts requests."""

    def _check_queue(self) -> None:
        """Of a request: vLLM's bound on the tokens that wait to be read."""
        most, waiting = self.scheduler_config.max_num_queued_tokens, self.get_num_queued_tokens()
        if most is not None and waiting >= most:
            self._record_admission_rejection("max_num_queued_tokens")
            self.refuse(OverloadedError(f"{waiting} tokens of prompts wait to be read, of at most {most}.", "queued_tokens", 1))

    @staticmethod
    def refuse(error: OverloadedError) -> NoReturn:
        """End the request with this error, whatever route it came by."""
        if record := current.get():
            record.refusal = error
        raise GracefulHTTPError(error.message, HTTPStatus(error.status))

    def run(self, prompt: Any, params: SamplingParams, request_id: str, **options: Any) -> AsyncGenerator[RequestOutput, None]:
        """One engine request, as plain vLLM runs it."""
        return super().generate(prompt, params, request_id, **options)

    def unseen_tokens(self, request_id: str) -> int:
        """What an engine request has generated so far, and gives at its end."""
        processor = self.output_processor
        found = (processor.request_states.get(internal) for internal in processor.external_req_ids.get(request_id, ()))
        return sum(state.detokenizer.num_output_tokens() for state in found if state and state.detokenizer)

    async def _plain(
        self, prompt: Any, token_ids: list[int], params: SamplingParams, request_id: str, options: dict[str, Any],
        record: Record | None,
    ) -> AsyncGenerator[RequestOutput, None]:  # fmt: skip
        """As plain vLLM answers; only counted."""
        if record is not None:
            record.arrived(len(token_ids), params.max_tokens)
            record.pass_id = request_id
        async with aclosing(self.run(prompt, params, request_id, **options)) as outputs:
            async for output in outputs:
                if record is not None:
                    record.generated_tokens += sum(len(choice.token_ids) for choice in output.outputs)
                yield output

    async def _routed(self, question: Question, record: Record) -> AsyncGenerator[RequestOutput, None]:
        """The mode's own way. Raises for a second prompt beside the first: one request has one route."""
        if record.is_running:
            raise VLLMValidationError("A mode takes one prompt a request. Send the prompts one by one.", parameter="prompt")
        record.is_running = True
        ask, params = record.ask, question.params
        if ask.thinking_budget is not None and self.has_thinking_budgets:
            given = params.thinking_token_budget
            params.thinking_token_budget = ask.thinking_budget if given is None else min(given, ask.thinking_budget)
        mode, run = modes.registered()[ask.mode], Passes(self, question, record)
        if not record.escalated:
            record.arrived(len(question.token_ids), run.most_tokens())
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
            await run.decide(finite(mode.decide(run, verdict), verdict))
        yield run.nothing()

    def drop_latents(self, key: str) -> None:
        """Those that nobody will ask for, without waiting."""
        task = asyncio.ensure_future(self.collective_rpc("latentserve_drop", args=(key,)))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    @functools.cached_property
    def boundaries(self) -> Boundaries:
        """Where chains of this base have their steps."""
        return Boundaries(self.get_tokenizer())

    def said(self, key: str) -> "asyncio.Future[Said | None]":
        """What the latents of a pass that `explains` say; None where they cannot be used."""

        async def ask() -> Said | None:
            (result, *_) = await self.collective_rpc("latentserve_reading", args=(key,))
            return Said(*result) if result else None

        task = asyncio.ensure_future(ask())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody awaits it
        return task

    async def how_it_was_mixed(self, key: str) -> tuple[int, float, int] | None:
        """Of a chain in mixtures: steps, their summed entropy in nats, switches."""
        (result, *_) = await self.collective_rpc("latentserve_mixtures", args=(key,))
        return tuple(result) if result else None

    def encode_suffix(self, text: str) -> list[int]:
        """What a chain starts with."""
        return self.get_tokenizer().encode(text, add_special_tokens=False) if text else []

    @property
    def has_thinking_budgets(self) -> bool:
        config = self.vllm_config.reasoning_config
        return config is not None and config.enabled and self.hybrid.ends_chains

    async def inspect(self, token_ids: list[int], num_latents: int = 0) -> tuple[list[list[float]], list[list[float]] | None]:
        """H_X (T, d) and z (N, d) of a prompt, as the worker computes them; for the parity check."""
        if num_latents > self.hybrid.max_latents:
            raise ValueError(f"{num_latents} latents are asked for, and the network computes at most {self.hybrid.max_latents}")
        key = unique_id("inspect")
        params = read_params(Read(key, num_latents, keep_states=True), self.hybrid.num_verdict_values)
        try:
            async for _ in self.run({"type": "token", "prompt_token_ids": token_ids}, params, key):
                pass
            (result, *_) = await self.collective_rpc("latentserve_inspect", args=(key,))
            return result
        finally:
            self.drop_latents(key)
