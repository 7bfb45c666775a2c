"""A chain that may end early, by trial answers that are asked for beside it at the ends of its steps.

chain     as it would be anyway; it streams on while a trial runs
trial     [X ; layout ; chain so far ; end of thinking], a few tokens, greedy; all but a block of it comes from the prefix cache
answer    the same prompt, as the client wants it; the chain is aborted
"""

import asyncio
import contextlib
import math
import statistics
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.exits import Ending, ExitRule, Trial, ending, is_due

if TYPE_CHECKING:
    from server.engine.passes import Passes

_TOP = 20  # of a distribution, enough for its entropy


def sampled(choice: CompletionOutput) -> list[float]:
    """The log-probability of each token."""
    return [step[token].logprob for step, token in zip(choice.logprobs or (), choice.token_ids, strict=True)]


class EarlyExit:
    """One answer whose chain may end early."""

    def __init__(
        self, run: "Passes", rule: ExitRule, prompt: dict[str, Any], params: SamplingParams, options: dict[str, Any]
    ) -> None:
        """`prompt`, `params`, `options`: of the pass that would answer anyway."""
        self._run, self._rule, self._prompt, self._params, self._options = run, rule, prompt, params, options
        self._closing = run.engine.hybrid.layout.after_latents
        self._expected = run.record.scores.tokens if run.record.scores else None
        self._token_ids = list[int]()  # of the chain
        self._step, self._is_thinking = 0, True
        self._trials = list[Trial]()
        self._running: asyncio.Task[Trial] | None = None

    async def outputs(self) -> AsyncGenerator[RequestOutput, None]:
        """Parts of the chain and of the answer, whatever form is wanted; the record learns how the chain ended."""
        params, why = self._params.clone(), None
        params.output_kind = RequestOutputKind.DELTA
        try:
            async with aclosing(self._run.ask_engine(self._prompt, params, self._options)) as outputs:
                async for output in outputs:
                    why = self._look(output.outputs[0])
                    yield output
                    if why:
                        break
        finally:
            await self._stop()
        if why is None:
            return
        yield self._closed(output)
        answer = self._params.clone()
        answer.output_kind, answer.thinking_token_budget = RequestOutputKind.DELTA, None
        answer.extra_args = self._run.question.params.extra_args  # what the worker had to do for this question is done
        answer.max_tokens = self._room_left()
        options = self._options | {"reasoning_ended": True}  # a grammar constrains from the first token on
        async with aclosing(self._run.ask_engine(self._after(self._trials[-1].at_tokens), answer, options)) as outputs:
            async for output in outputs:
                yield output

    def _look(self, written: CompletionOutput) -> Ending | None:
        """At what was written, and at a trial that has ended; perhaps begin another one."""
        new = list(written.token_ids)
        self._token_ids += new
        self._is_thinking = self._is_thinking and self._run.engine.hybrid.end_of_thinking not in new
        if not self._is_thinking:
            return None
        if self._running and self._running.done():
            trial, self._running = self._running, None
            self._trials.append(trial.result())
            why = ending(self._rule, self._trials) if self._room_left() > 0 else None
            self._run.record.tried(self._trials, why, sum(trial.tokens for trial in self._trials))
            if why:
                return why
        boundaries = self._run.engine.boundaries
        if any(map(boundaries.is_end, new)):
            self._step, at = self._step + 1, len(boundaries.trimmed(self._token_ids))
            if self._running is None and self._fits(at) and is_due(self._rule, at, self._step, self._trials, self._expected):
                self._running = asyncio.create_task(self._try(at))
        return None

    async def _try(self, at_tokens: int) -> Trial:
        params = SamplingParams(
            max_tokens=self._rule.trial_tokens, temperature=0, logprobs=_TOP, output_kind=RequestOutputKind.FINAL_ONLY
        )
        options = self._options | {"reasoning_ended": True}
        outputs = self._run.ask_engine(self._after(at_tokens), params, options, is_trial=True)
        async with aclosing(outputs):
            last = [output async for output in outputs][-1].outputs[0]
        entropies = [-sum(math.exp(one.logprob) * one.logprob for one in step.values()) for step in last.logprobs or ()]
        return Trial.of(at_tokens, last.text, sampled(last), statistics.fmean(entropies))

    async def _stop(self) -> None:
        """A trial that nobody waits for."""
        if self._running:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    def _after(self, at_tokens: int) -> dict[str, Any]:
        """The question, and what was thought up to there, closed."""
        token_ids = [*self._prompt["prompt_token_ids"], *self._token_ids[:at_tokens], *self._closing]
        return self._run.going_on(self._prompt, token_ids)

    def _fits(self, at_tokens: int) -> bool:
        longest = len(self._prompt["prompt_token_ids"]) + at_tokens + len(self._closing) + self._rule.trial_tokens
        return longest <= self._run.engine.model_config.max_model_len

    def _room_left(self) -> int:
        """Tokens that the request's limit leaves for the answer."""
        assert self._params.max_tokens is not None, "vLLM's serving layer sets a limit"
        return self._params.max_tokens - len(self._token_ids) - len(self._closing)

    def _closed(self, last: RequestOutput) -> RequestOutput:
        """The end of thinking, which the model did not write."""
        text = self._run.engine.get_tokenizer().decode(self._closing)
        choice = CompletionOutput(0, text, list(self._closing), cumulative_logprob=None, logprobs=None)
        return RequestOutput(last.request_id, None, self._run.question.token_ids, None, [choice], finished=False)
