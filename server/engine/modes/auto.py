"""The router decides, from what reading the question found out; a doubtful cheap answer gives way to thinking in text."""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.policy import Decision
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes, finite, whole
from server.engine.work import Verdict

_CROWDED = 0.75  # share of the server's room from which on nothing is thought through in text
_CHECKED_TOKENS = 64  # of a cheap answer; a stream waits for them


class Auto(ReasoningMode):
    name = "auto"

    def decide(self, run: Passes, verdict: Verdict) -> Decision:
        # An operator may switch the policy before the answer is checked.
        router, limits = run.engine.hybrid.router, run.limits
        run.record.policy, run.record.router_version = router.policy_for(run.ask.options), router.version
        known = verdict.scores.correct(limits.cheap)
        if known is not None and math.isfinite(known):
            router.drift.add(known)
        if not run.engine.hybrid.can_think_in_text:
            return Decision(limits.cheap, known, None, "no_thinking")
        decision = run.record.policy.decide(verdict.scores, limits)
        if run.engine.load() >= _CROWDED:
            decision = run.demoted(decision, "load") if decision.mode.thinks_in_text else replace(decision, check=False)
        # Several answers have no one confidence.
        return replace(decision, check=False) if run.question.params.n > 1 else decision

    async def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        async with run.reading(begins=True) as verdict:
            decision = finite(self.decide(run, verdict), verdict)
            await run.decide(decision)
            async with aclosing(self._checked(run) if decision.check else run.answer()) as outputs:
                async for output in outputs:
                    yield output
            if run.record.escalated and not run.record.restarts:
                async with aclosing(run.answer()) as outputs:
                    async for output in outputs:
                        yield output

    async def _checked(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        """A cheap answer, given when its confidence suffices. The first token that is too uncertain ends it, before anything of
        it is given: the record then says escalated.

        With the option `early` a stream is given as it comes, and what must follow is left to who reads `record.restarts`.
        """
        record, policy, limits, params = run.record, run.record.policy, run.limits, run.question.params.clone()
        assert record.scores is not None and policy is not None and record.decision is not None, "decide comes before the check"  # noqa: PT018
        is_stream, wants_logprobs = params.output_kind is RequestOutputKind.DELTA, params.logprobs is not None
        params.output_kind, params.logprobs = RequestOutputKind.DELTA, params.logprobs or 0
        held, unchecked, decision, record.confidence = list[RequestOutput](), _CHECKED_TOKENS, record.decision, 1.0
        async with aclosing(run.answer(params)) as outputs:
            async for output in outputs:
                (choice,) = output.outputs
                if unchecked > 0 and choice.logprobs:
                    record.confidence = min(record.confidence, least_certain(choice.logprobs[:unchecked]))
                    decision = policy.check(record.scores, record.confidence, limits)
                    if decision.mode.thinks_in_text and (why := await run.why_not_think()):
                        decision, unchecked = run.demoted(decision, why), 0
                    if decision.mode.thinks_in_text:
                        run.escalate(decision)
                        return
                    unchecked -= len(choice.token_ids)
                if not wants_logprobs:
                    choice.logprobs = None
                held.append(output)
                if output.finished or (is_stream and (unchecked <= 0 or run.ask.options.early)):
                    await run.decide(decision)
                    for kept in held if is_stream else [whole(held)]:
                        run.has_given = True
                        yield kept
                    held.clear()


def least_certain(logprobs: Sequence[Mapping[int, Any]]) -> float:
    """The least probability that a token of an answer had when it was sampled."""
    return math.exp(min(next(iter(step.values())).logprob for step in logprobs))
