"""A mode from outside: several cheap answers, and of them the most frequent; where they disagree, an explicit one.

Its package names the class under the entry point group `latentserve.modes`: nothing of the server is touched.
"""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.policy import Decision, Mode
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes, finite
from server.engine.shadow import answer_of

_ANSWERS, _QUORUM = 5, 4


class Majority(ReasoningMode):
    name, arm = "majority", Mode.LATENT
    needs_latents = True

    async def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        async with run.reading() as verdict:
            await run.decide(finite(self.decide(run, verdict), verdict))
            if run.record.mode is Mode.LATENT and (agreed := await self._agreed(run)):
                yield agreed
                return
            async with aclosing(run.answer()) as outputs:
                async for output in outputs:
                    yield output

    async def _agreed(self, run: Passes) -> RequestOutput | None:
        """The answer that most give; None, and explicit thinking decided, where too few do."""
        params = run.question.params.clone()
        params.n, params.temperature, params.output_kind = _ANSWERS, 0.7, RequestOutputKind.FINAL_ONLY
        async with aclosing(run.answer(params)) as outputs:
            (output,) = [output async for output in outputs]
        votes = Counter(answer_of(choice.text) for choice in output.outputs)
        (favourite, count), *_ = votes.most_common(1)
        if count < _QUORUM:
            run.escalate(Decision(Mode.EXPLICIT, count / _ANSWERS, _QUORUM / _ANSWERS, "disagreement"))
            return None
        choice = next(choice for choice in output.outputs if answer_of(choice.text) == favourite)
        choice.index, output.outputs = 0, [choice]
        return output
