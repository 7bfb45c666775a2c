"""`latentserve analyse …`."""

from typing import Annotated

from reasoning_net.analysis import attention as attention_analysis
from reasoning_net.analysis import complexity as complexity_analysis
from reasoning_net.analysis import exits as exits_analysis
from reasoning_net.analysis import explain as explain_analysis
from reasoning_net.analysis import importance as importance_analysis
from reasoning_net.analysis import kv as kv_analysis
from reasoning_net.analysis import latents as latents_analysis
from reasoning_net.analysis import prompt as prompt_analysis
from reasoning_net.analysis import trajectory as trajectory_analysis
from reasoning_net.analysis import why as why_analysis
from reasoning_net.options import Flat


def attention(*, config: Annotated[attention_analysis.AttentionConfig, Flat]) -> str:
    return attention_analysis.main(config)


def complexity(*, config: Annotated[complexity_analysis.ComplexityConfig, Flat]) -> str:
    return complexity_analysis.main(config)


def exits(*, config: Annotated[exits_analysis.ExitsConfig, Flat]) -> str:
    return exits_analysis.main(config)


def explain(*, config: Annotated[explain_analysis.ExplainConfig, Flat]) -> str:
    return explain_analysis.main(config)


def importance(*, config: Annotated[importance_analysis.ImportanceConfig, Flat]) -> str:
    return importance_analysis.main(config)


def kv(*, config: Annotated[kv_analysis.KvConfig, Flat]) -> str:
    return kv_analysis.main(config)


def latents(*, config: Annotated[latents_analysis.LatentsConfig, Flat]) -> str:
    return latents_analysis.main(config)


def prompt(*, config: Annotated[prompt_analysis.PromptConfig, Flat]) -> str:
    return prompt_analysis.main(config)


def trajectory(*, config: Annotated[trajectory_analysis.TrajectoryConfig, Flat]) -> str:
    return trajectory_analysis.main(config)


def why(*, config: Annotated[why_analysis.WhyConfig | None, Flat] = None) -> str:
    return why_analysis.main(config or why_analysis.WhyConfig())
