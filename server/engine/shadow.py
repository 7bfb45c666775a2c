"""Shadowing: a share of auto's answers is compared, in idle time, with what another mode answers.

Where two answers differ at most one is right. Which one the probe's calibrated probabilities say, and so what the other mode
would have brought: the estimated regret of the decision.
"""

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from router.policy import Limits, Mode, Scores
from server.observe.metrics import Metrics
from server.observe.record import Ask, Record, current

if TYPE_CHECKING:
    from server.engine.seam import HybridEngine

logger = logging.getLogger("vllm.latentserve.shadow")
_WAITING = 64
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Shadowed:
    prompt: dict[str, Any]
    params: SamplingParams
    mode: Mode
    scores: Scores
    token_ids: list[int]
    """What the client was answered."""


class Shadows:
    """One question at a time, while the engine has nothing else to do; a request that comes stops it."""

    def __init__(self, engine: "HybridEngine", share: float, metrics: Metrics, decode: Callable[[list[int]], str]) -> None:
        self._engine, self._share, self._metrics, self._decode = engine, share, metrics, decode
        self._waiting: asyncio.Queue[_Shadowed] = asyncio.Queue(_WAITING)
        self._names = itertools.count()
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        self._task.cancel()

    def consider(self, prompt: dict[str, Any], params: SamplingParams, record: Record, token_ids: list[int]) -> None:
        """Perhaps compare this answer later. More than can wait are dropped."""
        if record.mode is None or record.scores is None or params.n > 1 or params.structured_outputs is not None:
            return
        if random.random() < self._share and not self._waiting.full():
            self._waiting.put_nowait(_Shadowed(prompt, params.clone(), record.mode, record.scores, token_ids))

    async def _run(self) -> None:
        while True:
            shadowed = await self._waiting.get()
            while self._engine.get_num_unfinished_requests():
                await asyncio.sleep(_POLL_SECONDS)
            try:
                await self._compare(shadowed)
            except Exception:
                logger.exception("A shadow request failed.")

    async def _compare(self, shadowed: _Shadowed) -> None:
        cheap = Limits(self._engine.hybrid.can_think_latent).cheap
        if not self._engine.hybrid.can_think_in_text:
            return None  # there is no other mode to compare with
        other = cheap if shadowed.mode.thinks_in_text else self._engine.hybrid.thinking
        token_ids = await self._answer(shadowed, other)
        if token_ids is None:
            return self._metrics.shadowed(shadowed.mode, other, "interrupted")
        ours, theirs = (answer_of(self._text(ids)) for ids in (shadowed.token_ids, token_ids))
        if ours == theirs:
            return self._metrics.shadowed(shadowed.mode, other, "agrees")
        regret = estimated_regret(shadowed.scores.correct(shadowed.mode), shadowed.scores.correct(other))
        return self._metrics.shadowed(shadowed.mode, other, "differs", regret)

    async def _answer(self, shadowed: _Shadowed, mode: Mode) -> list[int] | None:
        """The other mode's answer; None when the engine was wanted for something else."""
        current.set(Record(Ask(mode)))
        shadowed.params.output_kind = RequestOutputKind.DELTA
        shadowed.params.extra_args = None
        token_ids: list[int] = []
        outputs = self._engine.generate(shadowed.prompt, shadowed.params, f"shadow-{next(self._names)}")
        async with aclosing(outputs):
            async for output in outputs:
                token_ids += output.outputs[0].token_ids
                if not output.finished and self._engine.get_num_unfinished_requests() > 1:
                    return None
        return token_ids

    def _text(self, token_ids: list[int]) -> str:
        return self._decode(self._engine.hybrid.after_chain(token_ids))


def answer_of(text: str) -> str:
    """What two answers are compared by: their last number, or else their words."""
    numbers = re.findall(r"-?\d+(?:[.,]\d+)*", text)
    return numbers[-1] if numbers else " ".join(re.findall(r"\w+", text.casefold()))


def estimated_regret(chosen: float | None, other: float | None) -> float:
    """P(only the other is right) − P(only the chosen one is), given that the two differ."""
    if chosen is None or other is None:
        return 0.0
    only_other, only_chosen = other * (1 - chosen), chosen * (1 - other)
    return (only_other - only_chosen) / max(only_other + only_chosen, 1e-9)
