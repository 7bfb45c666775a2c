"""`latentserve ask`: one question to a running server, streamed."""

import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from openai import OpenAI, OpenAIError
from openai.types.chat import ChatCompletionMessageParam
from pydantic import NonNegativeFloat, PositiveInt

from reasoning_net.client import sentence
from reasoning_net.options import LOCAL_SERVER, ApiKey, Url
from router.policy import Mode


class AskError(Exception):
    """What the server answered instead of an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    text: str = "-"
    """The question; - or nothing reads it from standard input."""
    _: KW_ONLY
    mode: Mode = Mode.AUTO
    """How to answer."""
    url: Url = LOCAL_SERVER
    model: str | None = None
    """Default: the server's first model."""
    api_key: ApiKey = field(default=None, repr=False)
    system: str | None = None
    """System prompt."""
    max_tokens: PositiveInt | None = None
    """Limit on generated tokens."""
    temperature: NonNegativeFloat | None = None
    """0: greedy. Default: the server's."""
    explain: bool = False
    """Print what the latents say under the answer."""

    @property
    def messages(self) -> list[ChatCompletionMessageParam]:
        system: list[ChatCompletionMessageParam] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]


@dataclass(slots=True)
class Reply:
    """What came, with the seconds from sending to the first token and to the end."""

    model: str = ""
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    first_token_seconds: float | None = None
    seconds: float = 0.0
    route: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line of figures."""
        if not self.route or not self.usage:
            return ""
        parts = [f"{self.route['mode']}: {self.route['reason'].replace('_', ' ')}"]
        if self.route["score"] is not None:
            parts.append(f"score {self.route['score']:.2f}")
        parts.append(f"{self.usage['completion_tokens']} tokens")
        if self.route["latent_tokens"]:
            parts.append(f"{self.route['latent_tokens']} latents")
        if self.route.get("discarded_tokens"):
            parts.append(f"{self.route['discarded_tokens']} discarded")
        if self.first_token_seconds is not None:
            parts.append(f"first after {self.first_token_seconds:.2f} s")
        return f"[{', '.join(parts)}, done after {self.seconds:.2f} s]"

    @property
    def trace(self) -> str:
        """What the latents say, a line each."""
        if (rows := self.route.get("trace")) is None:
            return "No latents: the answer was not made from any."
        lines = (f"{row['latent']:4}  {row['value']:4}  {row['probability']:4.0%}  {row['operation'] or ''}" for row in rows)
        return "\n".join(["What the latents say:", *(line.rstrip() for line in lines)])


def ask(question: Question, show: Callable[[str, str], None]) -> Reply:
    """`show` gets each piece of (reasoning, content) as it comes. Raises `AskError`."""
    with OpenAI(base_url=f"{question.url.rstrip('/')}/v1", api_key=question.api_key or "none", max_retries=0) as client:
        try:
            return _ask(client, question, show)
        except OpenAIError as error:
            raise AskError(sentence(question.url, error)) from error


def _ask(client: OpenAI, question: Question, show: Callable[[str, str], None]) -> Reply:
    reply = Reply(question.model or client.models.list().data[0].id)
    started = time.perf_counter()
    limits = {"max_tokens": question.max_tokens, "temperature": question.temperature, "explain": question.explain or None}
    stream = client.chat.completions.create(
        model=reply.model, messages=question.messages, stream=True, stream_options={"include_usage": True},
        extra_body={"mode": question.mode} | {name: value for name, value in limits.items() if value is not None},
    )  # fmt: skip
    with stream:
        for chunk in stream:
            reply.route = (chunk.model_extra or {}).get("route") or reply.route
            reply.usage = chunk.usage.model_dump(exclude_unset=True) if chunk.usage else reply.usage
            for choice in chunk.choices:
                reasoning, content = (choice.delta.model_extra or {}).get("reasoning") or "", choice.delta.content or ""
                if reply.first_token_seconds is None and (reasoning or content):
                    reply.first_token_seconds = time.perf_counter() - started
                reply.reasoning, reply.content = reply.reasoning + reasoning, reply.content + content
                reply.finish_reason = choice.finish_reason or reply.finish_reason
                show(reasoning, content)
    reply.seconds = time.perf_counter() - started
    return reply
