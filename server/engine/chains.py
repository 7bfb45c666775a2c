"""How a chain in text gets written: by the engine alone, by a rule that may end it early, or with a stronger model's help."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.helper import HelpRule
from router.policy import Decision, Mode
from server.engine.exits import EarlyExit
from server.engine.helper import Helped
from server.engine.inline_exits import InlineExit

if TYPE_CHECKING:
    from server.engine.passes import Passes

Answering = tuple[dict[str, Any], SamplingParams, dict[str, Any]]
"""(prompt, parameters, options) of the pass that would answer anyway."""


class Chain(Protocol):
    def outputs(self) -> AsyncGenerator[RequestOutput, None]:
        """Parts of the chain and of the answer, whatever form is wanted."""
        ...


def chain_of(run: "Passes", decision: Decision, params: SamplingParams, answering: Answering) -> Chain | None:
    """A chain that more than the engine has a say in; None where it is the engine's alone. `params`: of the answer that is
    wanted: one, in parts or as a whole, without log-probabilities."""
    hybrid = run.engine.hybrid
    if decision.mode is not Mode.EXPLICIT or hybrid.end_of_thinking is None:
        return None
    if params.n > 1 or params.logprobs is not None or params.output_kind is RequestOutputKind.CUMULATIVE:
        return None
    if run.ask.soft is None and (rule := hybrid.exit_rule(run.ask)):
        return (InlineExit if rule.closes else EarlyExit)(run, rule, *answering)
    if (helper := run.engine.helper) and (help_rule := _help_rule(run)):
        return Helped(run, helper, help_rule, *answering)
    return None


def _help_rule(run: "Passes") -> HelpRule | None:
    """None where nobody wants help, or the question is sure to be answered without."""
    rule = run.engine.hybrid.help_rule(run.ask)
    sure = run.record.scores.explicit if run.record.scores else None
    return None if rule is None or (sure is not None and sure >= rule.sure) else rule
