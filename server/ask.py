"""`latentserve ask`: one question to a running server, streamed."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import httpx
from pydantic import NonNegativeFloat, PositiveInt

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

    def body(self, model: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": model, "mode": self.mode, "messages": [*messages, {"role": "user", "content": self.text}],
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        limits = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return body | {name: value for name, value in limits.items() if value is not None}


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


def ask(question: Question, show: Callable[[str, str], None]) -> Reply:
    """`show` gets each piece of (reasoning, content) as it comes. Raises `AskError`, or httpx's errors."""
    headers = {"Authorization": f"Bearer {question.api_key}"} if question.api_key else {}
    with httpx.Client(base_url=question.url, headers=headers, timeout=300) as client:
        if question.model is None:
            models = client.get("/v1/models")
            _check(models)
        reply = Reply(question.model or models.json()["data"][0]["id"])
        started = time.perf_counter()
        with client.stream("POST", "/v1/chat/completions", json=question.body(reply.model)) as response:
            _check(response)
            for chunk in _chunks(response):
                reply.route, reply.usage = chunk.get("route") or reply.route, chunk.get("usage") or reply.usage
                for choice in chunk["choices"]:
                    reasoning, content = choice["delta"].get("reasoning") or "", choice["delta"].get("content") or ""
                    if reply.first_token_seconds is None and (reasoning or content):
                        reply.first_token_seconds = time.perf_counter() - started
                    reply.reasoning, reply.content = reply.reasoning + reasoning, reply.content + content
                    reply.finish_reason = choice["finish_reason"] or reply.finish_reason
                    show(reasoning, content)
        reply.seconds = time.perf_counter() - started
    return reply


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise AskError(message(line.removeprefix("data: ")))
            yield chunk


def _check(response: httpx.Response) -> None:
    if response.status_code != 200:
        raise AskError(message(response.read().decode(errors="replace")) or f"HTTP {response.status_code}")


def message(body: str) -> str:
    """What a server says instead of an answer; its own words where it speaks OpenAI's protocol."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
