"""A running server, as evaluation and calibration ask it: OpenAI's client, many questions at once, a progress bar."""

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from openai.types.chat import ChatCompletion, ChatCompletionTokenLogprob
from tqdm.asyncio import tqdm

from reasoning_net.errors import StageError, unreachable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat completion of ours, and how long it took once it was sent."""

    content: ChatCompletion
    seconds: float

    @property
    def replies(self) -> list[str]:
        return [choice.message.content or "" for choice in self.content.choices]

    @property
    def route(self) -> dict[str, Any]:
        """What our servers say of the way that a request took."""
        route = (self.content.model_extra or {}).get("route")
        if route is None:
            raise StageError("The answer does not say in which mode it was given: is this another server?")
        return dict(route)

    @property
    def tokens(self) -> int:
        """Generated, with those of a cheap answer that was thrown away."""
        assert self.content.usage is not None, "completions that are not streamed have their usage"
        return self.content.usage.completion_tokens + int(self.route.get("discarded_tokens", 0))

    @property
    def least_certain(self) -> float:
        """The least probability that a token of the reply had when it was sampled; asked for with `logprobs`."""
        return math.exp(min(token.logprob for token in self._tokens))

    @property
    def token_logprobs(self) -> list[tuple[str, float]]:
        """Of the reply, token by token; asked for with `logprobs`."""
        return [(token.token, token.logprob) for token in self._tokens]

    @property
    def first_logprobs(self) -> list[float]:
        """Of the likeliest first tokens; asked for with `top_logprobs`."""
        return [token.logprob for token in self._tokens[0].top_logprobs]

    @property
    def _tokens(self) -> list[ChatCompletionTokenLogprob]:
        logprobs = self.content.choices[0].logprobs
        assert logprobs is not None, "log-probabilities were asked for"
        return logprobs.content or []


class Server:
    """At most `concurrency` requests at once. The client asks again, twice, when a connection breaks."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, concurrency: int) -> None:
        self._client, self._model, self._gate = client, model, asyncio.Semaphore(concurrency)

    async def complete(self, messages: Any, **fields: Any) -> Completion:
        """One answer to a conversation; `fields` are OpenAI's and ours. Raises `openai.APIError`."""
        async with self._gate:
            started = time.perf_counter()
            create = self._client.chat.completions.create
            content = await create(model=self._model, messages=messages, extra_body=fields)
            return Completion(content, time.perf_counter() - started)

    async def route(self, messages: Any) -> dict[str, Any]:
        """What `/v1/route` would do with a conversation. Raises `openai.APIError`."""
        async with self._gate:
            body = {"model": self._model, "messages": messages}
            return dict(await self._client.post("/route", cast_to=dict[str, Any], body=body))


@asynccontextmanager
async def connected(url: str, concurrency: int) -> AsyncIterator[Server]:
    """A server and its first model. What goes wrong with it, up to the end, is one sentence: `StageError`."""
    key = os.environ.get("OPENAI_API_KEY") or "none"
    async with openai.AsyncOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key) as client:
        try:
            models = await client.models.list()
            if not models.data:
                raise StageError(f"{url} serves no model.")
            yield Server(client, models.data[0].id, concurrency)
        except openai.OpenAIError as error:
            raise StageError(sentence(url, error)) from error


async def gather(coroutines: Iterable[Coroutine[Any, Any, T]], title: str) -> list[T]:
    """All results, in order, behind a progress bar."""
    return await tqdm.gather(*coroutines, desc=title, unit="question")


def sentence(url: str, error: openai.OpenAIError) -> str:
    """What went wrong, for the user of a command; in the server's own words where it has some."""
    if isinstance(error, openai.APIConnectionError):
        return unreachable(url, error.__cause__ or error)
    if isinstance(error, openai.AuthenticationError):
        return f"{url} wants an API key, or another one: set OPENAI_API_KEY."
    said = error.body.get("message") if isinstance(error, openai.APIError) and isinstance(error.body, dict) else None
    return f"{url} refused a request: {said or error}"
