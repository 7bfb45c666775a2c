"""No thinking: the model is told that it is over."""

from collections.abc import AsyncGenerator

from vllm.outputs import RequestOutput

from router.policy import Mode, Scores, requested
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes


class Direct(ReasoningMode):
    name, arm = "direct", Mode.DIRECT

    def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        run.decide(requested(self.arm, Scores()))
        return run.answer()
