"""Ways to answer, one file each.

A mode is a class with a name and a method `answer`, which says what passes are made and what is given of them. Others come from
outside: an installed package names its class under the entry point group `latentserve.modes`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, ClassVar

from router.policy import Decision, Mode, requested

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

    from server.engine.passes import Passes
    from server.engine.work import Verdict

_GROUP = "latentserve.modes"


class ReasoningMode(ABC):
    """One object for all requests: what belongs to a request is in `Passes`."""

    name: ClassVar[str]
    """As clients call it."""
    arm: ClassVar[Mode] = Mode.EXPLICIT
    """What answers, unless the mode decides otherwise."""
    needs_latents: ClassVar[bool] = False
    """Whether a server without a reasoning network must refuse it."""
    needs_thinking_on: ClassVar[bool] = False
    """Whether the network must have been trained for thinking that goes on in text."""
    needs_text: ClassVar[bool] = False
    """Whether the base must think in text: by itself, or by a thinking prompt."""
    needs_mixtures: ClassVar[bool] = False
    """Whether a server must have been started with `--soft-thinking`."""

    def decide(self, run: "Passes", verdict: "Verdict") -> Decision:  # noqa: ARG002
        """What `/v1/route` shows. A named mode is never overruled."""
        return requested(self.arm, verdict.scores)

    @abstractmethod
    def answer(self, run: "Passes") -> AsyncGenerator["RequestOutput", None]:
        """The outputs for the serving layer, as AsyncLLM.generate gives them."""


@functools.cache
def registered() -> dict[str, ReasoningMode]:
    """All modes by name; ours first."""
    from server.engine.modes.auto import Auto
    from server.engine.modes.direct import Direct
    from server.engine.modes.explicit import Explicit
    from server.engine.modes.latent import Latent, LatentExplicit
    from server.engine.modes.soft import Soft

    others = (entry.load()() for entry in entry_points(group=_GROUP))
    return {mode.name: mode for mode in (Auto(), Latent(), LatentExplicit(), Explicit(), Direct(), Soft(), *others)}


def available(*, can_think_latent: bool, can_think_on: bool, can_think_in_text: bool, can_mix: bool) -> list[str]:
    """The names of the modes that a server can answer in."""
    return [
        name
        for name, mode in registered().items()
        if (can_think_latent or not mode.needs_latents)
        and (can_think_on or not mode.needs_thinking_on)
        and (can_think_in_text or not mode.needs_text)
        and (can_mix or not mode.needs_mixtures)
    ]
