"""Thinking in text, as the model was trained to."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.outputs import RequestOutput

from router.policy import Mode, Scores, requested
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes


class Explicit(ReasoningMode):
    name, arm = "explicit", Mode.EXPLICIT
    needs_text = True

    async def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        if run.must_predict or run.predicts_exits:
            async with run.reading():
                pass  # the latents that a network computes beside are dropped
        await run.decide(run.predicted(requested(self.arm, Scores())))
        async with aclosing(run.answer()) as outputs:
            async for output in outputs:
                yield output
