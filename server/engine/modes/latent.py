"""Thinking in vectors: the question is read once, and its latents stand in for the chain (Latent Reasoning Tuning), or for its
beginning (LaTER)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.outputs import RequestOutput

from router.policy import Mode
from server.engine.modes import ReasoningMode
from server.engine.passes import Passes, finite


class Latent(ReasoningMode):
    name, arm = "latent", Mode.LATENT
    needs_latents = True

    async def answer(self, run: Passes) -> AsyncGenerator[RequestOutput, None]:
        async with run.reading(begins=self.arm is Mode.LATENT) as verdict:
            await run.decide(finite(self.decide(run, verdict), verdict))
            async with aclosing(run.answer()) as outputs:
                async for output in outputs:
                    yield output


class LatentExplicit(Latent):
    """What the latents do not hold is thought through in text."""

    name, arm = "latent+explicit", Mode.LATENT_EXPLICIT
    needs_thinking_on = needs_text = True
