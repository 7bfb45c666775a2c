"""A chain that ends where the model would most nearly end it: the trial is how its own request goes on.

chain     the worker closes it, once, where P(end of thinking) is high enough; what it then writes is the trial, and the answer
unsure    the request is aborted, what followed the chain is thrown away, and another one goes on where the chain was closed

Against trials beside the chain nothing is written twice, and nobody has to look at the tokens of a chain that nobody reads.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.exits import Ending, ExitRule, Trial, earliest, ending
from server.engine.exits import sampled
from server.engine.work import Close, to_extra_args
from server.engine.worker.closings import UNASKED

if TYPE_CHECKING:
    from server.engine.passes import Passes


class InlineExit:
    """One answer whose chain may be closed."""

    def __init__(
        self, run: "Passes", rule: ExitRule, prompt: dict[str, Any], params: SamplingParams, options: dict[str, Any]
    ) -> None:
        """`prompt`, `params`, `options`: of the pass that would answer anyway."""
        self._run, self._rule, self._prompt, self._params, self._options = run, rule, prompt, params, options
        self._expected = run.record.scores.tokens if run.record.scores else None
        self._chain = list[int]()  # what earlier passes have written, without their trials
        self._trials = list[Trial]()
        self._wasted = 0  # tokens of trials that were not sure
        self._why: Ending | None = None
        self._has_ended = False

    async def outputs(self) -> AsyncGenerator[RequestOutput, None]:
        """Parts of the chain and of the answer, whatever form is wanted; the record learns how the chain ended."""
        self._run.drop_latents()  # which the pass would have done
        while not self._has_ended:
            prompt = self._run.going_on(self._prompt, [*self._prompt["prompt_token_ids"], *self._chain])
            written = self._run.ask_engine(prompt, self._of_pass(len(prompt["prompt_token_ids"])), self._options)
            async with aclosing(written), aclosing(self._up_to_a_doubt(written)) as outputs:
                async for output in outputs:
                    yield output

    def _of_pass(self, start: int) -> SamplingParams:
        params, end = self._params.clone(), self._run.engine.hybrid.end_of_thinking
        assert params.max_tokens is not None, "vLLM's serving layer sets a limit"
        assert end is not None, "a rule is for chains that end with a token"
        params.max_tokens -= len(self._chain)
        if self._wasted:  # what is wanted as a whole is written to its end before a doubt is seen: once
            params.output_kind = RequestOutputKind.DELTA
        if len(self._trials) < self._rule.max_trials:
            first = max(0, earliest(self._rule, self._trials, self._expected) - len(self._chain))
            work = Close(start, end, self._rule.closes, first)
            params.logprobs, params.extra_args = 0, dict(params.extra_args or {}) | to_extra_args(work)
        return params

    async def _up_to_a_doubt(self, written: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
        """What a pass writes, to its end, or up to where its chain was closed for an answer that is not sure."""
        held: RequestOutput | None = None  # from the closing on, while its answer is too short to be judged
        at = 0
        async for output in written:
            if held is not None:
                held.add(output, aggregate=True)
            elif self._why is None and (found := self._closed_at(output.outputs[0])) is not None:
                held, at = output, found
            else:
                self._chain += output.outputs[0].token_ids
                self._has_ended = output.finished
                yield output
                continue
            if len(held.outputs[0].token_ids) - at <= self._rule.trial_tokens and not held.finished:
                continue
            is_sure = self._is_sure(held.outputs[0], at)
            self._wasted += 0 if is_sure else len(held.outputs[0].token_ids) - at
            self._run.record.tried(self._trials, self._why, self._wasted)
            if is_sure:
                self._has_ended = held.finished
                yield held
                held = None
                continue
            if at:
                yield self._beginning(held, at)
            return

    def _closed_at(self, choice: CompletionOutput) -> int | None:
        """Where its tokens have an end of thinking that nobody sampled."""
        end, each = self._run.engine.hybrid.end_of_thinking, zip(choice.token_ids, choice.logprobs or (), strict=False)
        return next((at for at, (token, step) in enumerate(each) if token == end and step[end].rank == UNASKED), None)

    def _is_sure(self, choice: CompletionOutput, at: int) -> bool:
        """Whether what follows the closing may be the answer. A limit may have left nothing of it."""
        answer = slice(at + 1, at + 1 + self._rule.trial_tokens)
        if not choice.token_ids[answer]:
            return False
        text = self._run.engine.get_tokenizer().decode(choice.token_ids[answer])
        self._trials.append(Trial.of(len(self._chain) + at, text, sampled(choice)[answer]))
        self._why = ending(self._rule, self._trials)
        return self._why is not None

    def _beginning(self, held: RequestOutput, at: int) -> RequestOutput:
        """What stands before the closing: the chain goes on after it."""
        (choice,), token_ids = held.outputs, list(held.outputs[0].token_ids[:at])
        self._chain += token_ids
        text = self._run.engine.get_tokenizer().decode(token_ids, skip_special_tokens=self._params.skip_special_tokens)
        choice.text, choice.token_ids, choice.logprobs = text, token_ids, None
        choice.finish_reason, choice.stop_reason, held.finished = None, None, False
        return held
