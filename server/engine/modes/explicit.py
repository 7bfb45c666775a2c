"""Thinking in text, as the model was trained to."""

from collections.abc import AsyncGenerator

from vllm.outputs import RequestOutput

from router.policy import Mode, Scores, requested
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes


class Explicit(ReasoningMode):
    name, arm = "explicit", Mode.EXPLICIT

    def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        run.decide(requested(self.arm, Scores()))
        return run.answer()
