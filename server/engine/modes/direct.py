"""No thinking: the model is told that it is over."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.outputs import RequestOutput

from router.policy import Mode, Scores, requested
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes


class Direct(ReasoningMode):
    name, arm = "direct", Mode.DIRECT

    async def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        await run.decide(requested(self.arm, Scores()))
        async with aclosing(run.answer()) as outputs:
            async for output in outputs:
                yield output
