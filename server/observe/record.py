"""One request: what was asked (`Ask`, frozen), and what happened (`Record`).

The wire makes both. The engine writes its part through `arrived`, `decided`, `generated` and `escalate`; the wire writes when
the response left and what became of it. Headers, the `route` object, metrics, spans and logs read the record.
"""

import contextlib
import math
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from router.exits import Ending, ExitRule, Trial
from router.helper import Help, HelpRule
from router.policy import Decision, Mode, NumLatents, Policy, Scores
from router.router import Options
from router.soft import SoftThinking
from server.http.errors import LatentserveError
from server.http.quotas import Quota
from server.observe.explanation import Explanation


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants, after body, alias, headers and defaults."""

    mode: str
    """By its name in the registry of modes."""
    num_latents: NumLatents | None = None
    """None: the server's default."""
    options: Options = field(default_factory=Options)
    """Of mode auto: the `router` field."""
    thinking_budget: int | None = None
    """From fields that vLLM does not read, such as Anthropic's `thinking.budget_tokens`."""
    names_temperature: bool = False
    exit: ExitRule | bool | None = None
    """Whether, and by which rule, the chain may end early; None: as the server does it."""
    help: HelpRule | bool | None = None
    """Whether, and by which rule, a helper writes steps of the chain; None: as the server does it."""
    soft: SoftThinking | None = None
    """How a chain is thought in mixtures of tokens; None: in text."""
    brief: bool = False
    """Show the chain's last sentences only."""
    only_route: bool = False
    """Read and decide, and generate nothing (`/v1/route`)."""
    explains: bool = False
    """Say what the latents say."""
    verifies: bool = False
    """And put that to the test (`/v1/explain`)."""

    @classmethod
    def plain(cls) -> "Ask":
        """Of requests that are vLLM's alone: no mode, no route."""
        return cls("")

    @property
    def is_plain(self) -> bool:
        return not self.mode

    @property
    def must_think(self) -> bool:
        """Whether the answer is thought through in text, whatever is found out about the question."""
        return (self.mode in (Mode.EXPLICIT, Mode.LATENT_EXPLICIT) or self.soft is not None) and not self.only_route


@dataclass(slots=True)
class Record:
    """What happened to one request. Times are on the clock of `time.perf_counter`."""

    ask: Ask
    request_id: str = ""
    """The response's; before there is one the client's X-Request-Id, or one in its place. A label: the engine has its own."""
    session_id: str | None = None
    """A label, too, that the requests of one conversation share."""
    trace_id: str | None = None
    """None without tracing."""
    answers: int = 1
    """That the request is for."""
    most_tokens: int | None = None
    """That one of them may have; None where the request does not say, until the engine has it."""
    pass_id: str | None = None
    """Of the engine request that writes now: what it has written may come as a whole, and so not be counted yet."""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt: found in the prefix cache before anything of this request was there."""
    cache_creation_tokens: int = 0
    """Of the prompt: left in the prefix cache."""
    scores: Scores | None = None
    """What reading found out; None where nothing was read."""
    policy: Policy | None = None
    """Of mode auto."""
    router_version: str | None = None
    """Of what was in force when it decided."""
    decision: Decision | None = None
    """None until the engine has decided; another one after an escalation."""
    latent_tokens: int = 0
    explanation: Explanation | None = None
    """What the latents of the answer say, where that was asked; None where it was not made from latents."""
    changed_tokens: int = 0
    """Of changed questions that were read to put that to the test."""
    confidence: float | None = None
    """Probability of the least certain token of a cheap answer that was checked."""
    escalated: bool = False
    restarts: bool = False
    """The answer that is being streamed was found doubtful: the explicit one is to follow."""
    generated_tokens: int = 0
    discarded_tokens: int = 0
    """Of an answer that was found doubtful."""
    thinking_tokens: int = 0
    """Of the generated ones, those of the written chain."""
    chain_has_ended: bool = False
    is_unanswered: bool = False
    """What was generated ends within the chain."""
    trials: Sequence[Trial] = ()
    trial_tokens: int = 0
    """Generated for them and given to nobody."""
    """Answers that were forced along the chain."""
    ending: Ending | None = None
    """Why the chain ended before the model closed it."""
    help: Help | None = None
    """That the chain got from another server."""
    soft: dict[str, Any] | None = None
    """How a chain in mixtures of tokens went."""
    is_running: bool = False
    """In the engine."""
    stages: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("gateway", "queue", "read", "network", "probe", "discarded", "answer"), 0.0)
    )
    """Where the seconds went: up to the engine, waiting for room for latents, reading the prompt (network and probe, of the
    batch that this request was in, lie within it), a doubtful answer, the answer. The rest follows the engine's last word."""
    started: float = field(default_factory=time.perf_counter)
    first_byte: float | None = None
    """When a stream's first event left; None without a stream."""
    answered: float | None = None
    """When the engine had nothing more to say."""
    ended: float | None = None
    """When the last byte left."""
    status: int | None = None
    """Of HTTP."""
    failure: str | None = None
    """What came instead of an answer."""
    quota: Quota | None = None
    """Of the client's key; None where keys have no limits."""
    outputs: list[AsyncGenerator[Any, None]] = field(default_factory=list)
    """That the engine gives for this request."""
    refusal: LatentserveError | None = None
    """Why the engine's side would not answer, where a status and headers of our own must say it."""

    @property
    def mode(self) -> Mode | None:
        """That answers; None until that is decided."""
        return self.decision.mode if self.decision else None

    @property
    def score(self) -> float | None:
        return self.decision.score if self.decision else None

    @property
    def thinks_in_text(self) -> bool:
        """Whether the model's output starts with its chain. Undecided requests may."""
        return self.mode is None or self.mode.thinks_in_text

    @property
    def seconds(self) -> float:
        """From the receipt to the last byte."""
        assert self.ended is not None, "asked of requests that have ended"
        return self.ended - self.started

    def arrived(self, prompt_tokens: int, most_tokens: int | None) -> None:
        """The engine has the request."""
        self.stages["gateway"], self.prompt_tokens = time.perf_counter() - self.started, prompt_tokens
        self.most_tokens = most_tokens

    def decided(self, decision: Decision, latent_tokens: int = 0) -> None:
        self.decision, self.latent_tokens = decision, latent_tokens

    def generated(self, token_ids: list[int], end_of_thinking: int | None, *, is_first_choice: bool) -> None:
        """New tokens; of several answers the first one's chain is counted."""
        self.generated_tokens += len(token_ids)
        if is_first_choice and self.thinks_in_text and not self.chain_has_ended:
            self.chain_has_ended = end_of_thinking in token_ids
            self.thinking_tokens += token_ids.index(end_of_thinking) + 1 if end_of_thinking in token_ids else len(token_ids)
            self.is_unanswered = end_of_thinking is not None and not self.chain_has_ended

    def escalate(self, decision: Decision, latent_tokens: int = 0) -> None:
        """What was generated so far is void; another answer follows."""
        self.escalated, self.discarded_tokens, self.generated_tokens = True, self.generated_tokens, 0
        self.pass_id = None
        self.stages["discarded"], self.stages["answer"] = self.stages["answer"], 0.0
        self.explanation = None
        self.decided(decision, latent_tokens)

    def tried(self, trials: Sequence[Trial], ending: Ending | None, tokens: int) -> None:
        """All trials of a chain so far; so many tokens were generated for them and given to nobody."""
        self.discarded_tokens += tokens - self.trial_tokens
        self.trials, self.ending, self.trial_tokens = trials, ending, tokens

    def mixed(self, summary: tuple[int, float, int] | None) -> None:
        """A chain was thought in mixtures: steps, their summed entropy in nats, switches."""
        if summary is not None:
            steps, entropy, switches = summary
            self.soft = {"steps": steps, "mean_entropy": _rounded(entropy / max(1, steps)), "switches": switches}

    async def close(self) -> None:
        """End what the engine still does for this request. Whoever was cancelled while it wrote to a client leaves the engine's
        outputs to the garbage collector, and permits with them."""
        for outputs in self.outputs:
            with contextlib.suppress(RuntimeError):  # somebody reads them still, and ends them
                await outputs.aclose()
        self.outputs.clear()

    def timeline(self) -> Iterator[tuple[str, float, float]]:
        """(stage, start, end). One stage follows the other, so where a stage was not, it has no length."""
        start = self.started
        for stage in ("gateway", "queue", "read", "discarded"):
            end = start + self.stages[stage]
            yield stage, start, end
            start = end
        if self.answered is not None:
            yield "answer", self.answered - self.stages["answer"], self.answered
            yield "respond", self.answered, self.started + self.seconds

    def public(self) -> dict[str, Any]:
        """The `route` object of a response. Its stages are seconds."""
        decision, scores = self.decision, asdict(self.scores) if self.scores else {}
        by_latents, probes = scores.pop("by_latents", ()), scores.pop("probes", {})
        shown: dict[str, Any] = {
            "requested": self.ask.mode,
            "mode": self.mode,
            "score": _rounded(self.score),
            "threshold": _rounded(decision.threshold) if decision else None,
            "reason": decision.reason if decision else "",
            "latent_tokens": self.latent_tokens,
            "escalated": self.escalated,
            "scores": {name: _rounded(value) for name, value in scores.items() if value is not None},
            "stages": {name: round(seconds, 5) for name, seconds in self.stages.items()},
        }
        if probes:
            shown["scores"]["probes"] = {name: _rounded(value) for name, value in probes.items()}
        if self.ask.explains:
            told = self.explanation
            shown |= {"trace": told.rows if told else None, "decodability": _rounded(told.decodability) if told else None}
        if by_latents:
            shown["latent_by_n"] = {str(number): _rounded(correct) for number, correct in by_latents}
        if self.trials:
            shown["exit"] = {
                "rule": self.ending,
                "at_tokens": self.trials[-1].at_tokens if self.ending else None,
                "trials": len(self.trials),
                "trial_tokens": self.trial_tokens,
                "confidence": _rounded(self.trials[-1].mean),
            }
            shown["discarded_tokens"] = self.discarded_tokens
        if self.help is not None:
            shown["helper"] = self.help.public()
            shown["discarded_tokens"] = self.discarded_tokens
        if self.soft is not None:
            shown["soft"] = self.soft
        if self.policy is not None:
            shown |= {"policy": self.policy.name, "router_version": self.router_version}
            shown |= {"discarded_tokens": self.discarded_tokens}
        if self.mode and self.mode.thinks_in_text:
            if decision and decision.thinking_budget is not None:
                shown["thinking_budget"] = decision.thinking_budget
            if self.generated_tokens:
                shown["unanswered"] = self.is_unanswered
        return shown

    def line(self) -> dict[str, Any]:
        """What is written down about a request that has ended: never its text."""
        stages = {stage: end - start for stage, start, end in self.timeline()}
        stages |= {"network": self.stages["network"], "probe": self.stages["probe"]}
        shown = self.public()
        shown.pop("trace", None)  # numbers of the question, and of the answer
        return {
            "request_id": self.request_id,
            **({"session_id": self.session_id} if self.session_id else {}),
            **({"trace_id": self.trace_id} if self.trace_id else {}),
            **shown,
            "confidence": self.confidence,
            "prompt_tokens": self.prompt_tokens,
            "thinking_tokens": self.thinking_tokens,
            "generated_tokens": self.generated_tokens,
            "stages": {stage: round(seconds, 5) for stage, seconds in stages.items()},
            "status": self.status,
            "failure": self.failure,
            "seconds": _rounded(self.seconds),
        }


def _rounded(value: float | None) -> float | None:
    """For JSON, which knows no NaN."""
    return round(value, 4) if value is not None and math.isfinite(value) else None


current: ContextVar[Record | None] = ContextVar("current", default=None)
"""Of the HTTP request at hand; vLLM's serving layer, which stands between the request and the engine, does not know it."""
