"""A chain of which a stronger model writes some steps (GlimpRouter, 2601.05110; Speculative Thinking, 2504.12329).

own     our engine writes the chain; where a step begins, its first tokens are looked at before they are given
helper  where the rule says so they are thrown away, and another server writes the step after the same tokens
own     goes on after it, its prompt from the prefix cache; the answer is always our own model's

Another server: vLLM's completions, with token ids where both tokenizers give the same ids for a text, which is asked once; else
with the text. What goes wrong there leaves the step to our own model, and is counted.
"""

import copy
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
from transformers import PreTrainedTokenizerBase
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from router.helper import Glimpses, Help, HelpRule, tokens_of_help

if TYPE_CHECKING:
    from server.engine.passes import Passes

logger = logging.getLogger("vllm.latentserve.helper")
_TOP = 20  # of a distribution, enough for its entropy
_TIMEOUT = httpx.Timeout(60, connect=5)
_SAMPLE = "First, 12 + 7 = 19.\n\nWait, <think>übrigens 你好</think> {x: 3.14}\n"
"""A text that tokenizers differ on."""


class Helper:
    """Another server, and what this one has learnt of when it is worth asking."""

    def __init__(
        self, url: str, model: str | None, key: str | None, rule: HelpRule, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=_TIMEOUT)
        self._model, self._tokenizer, self._takes_ids = model, tokenizer, False
        self.rule, self.glimpses = rule, Glimpses()

    async def start(self) -> None:
        """Learn its model, and whether it has our tokens. Raises `httpx.HTTPError`."""
        if self._model is None:
            listed = await self._http.get("/v1/models")
            self._model = str(listed.raise_for_status().json()["data"][0]["id"])
        asked = {"model": self._model, "prompt": _SAMPLE, "add_special_tokens": False}
        answer = await self._http.post("/tokenize", json=asked)
        same = answer.is_success and answer.json()["tokens"] == self._tokenizer.encode(_SAMPLE, add_special_tokens=False)
        self._takes_ids = bool(same)
        how = "tokens are handed over" if same else "its tokenizer is another one: text is handed over"
        logger.info("Helper: %s at %s; %s.", self._model, self._http.base_url, how)

    async def close(self) -> None:
        await self._http.aclose()

    async def write(self, token_ids: list[int], params: SamplingParams, max_tokens: int, *, one_line: bool) -> list[int]:
        """What it writes after these tokens. Raises `httpx.HTTPError`, `LookupError`, `ValueError`."""
        prompt = token_ids if self._takes_ids else self._tokenizer.decode(token_ids)
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": max_tokens, "temperature": params.temperature,
            "seed": params.seed, "stop": ["\n"] if one_line else None,
            "include_stop_str_in_output": True, "skip_special_tokens": False, "add_special_tokens": False,
            "return_token_ids": self._takes_ids,
        }  # fmt: skip
        answer = await self._http.post(
            "/v1/completions", json={name: value for name, value in body.items() if value is not None}
        )
        choice = answer.raise_for_status().json()["choices"][0]
        if not self._takes_ids:
            return list(self._tokenizer.encode(choice["text"], add_special_tokens=False))
        written = [int(token) for token in choice["token_ids"]]
        if any(not 0 <= token < len(self._tokenizer) for token in written):
            raise ValueError("it wrote tokens that our model does not have")
        return written


class Helped:
    """One answer whose chain may have steps of the helper's."""

    def __init__(
        self, run: "Passes", helper: Helper, rule: HelpRule, prompt: dict[str, Any], params: SamplingParams,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        """`prompt`, `params`, `options`: of the pass that would answer anyway."""
        self._run, self._helper, self._rule = run, helper, rule
        self._prompt, self._params, self._options = prompt, params, options
        self._token_ids = list[int]()  # of the chain, and of the answer
        self._asks = self._is_thinking = True
        self._begins = False  # the next token that is not blank begins a step
        self._held = list[RequestOutput]()  # the beginning of a step, token by token, while it is looked at
        self._last_step = list[int]()  # of the helper's
        self._chance = random.Random(params.seed)
        self._help = Help()

    async def outputs(self) -> AsyncGenerator[RequestOutput, None]:
        """Parts of the chain and of the answer, whatever form is wanted; the record learns of the help."""
        self._run.record.help = self._help
        while True:
            async with aclosing(self._own()) as outputs:
                async for output in outputs:
                    yield output
                    if output.finished:
                        return
            for output in await self._ask():  # our engine was stopped where the helper goes on
                yield self._noted(output)
                if output.finished:
                    return

    async def _own(self) -> AsyncGenerator[RequestOutput, None]:
        """What our engine writes, to the end, or up to where the helper goes on: then the step's beginning is held."""
        params = self._params.clone()
        params.output_kind, params.max_tokens = RequestOutputKind.DELTA, self._room_left()
        params.logprobs = _TOP if self._may_ask() else None
        options = self._options if self._is_thinking else self._options | {"reasoning_ended": True}
        prompt = self._run.going_on(self._prompt, self._so_far())
        async with aclosing(self._run.ask_engine(prompt, params, options)) as outputs:
            async for output in outputs:
                for piece in self._pieces(output):
                    if self._is_looked_at(piece):
                        self._held.append(piece)
                        if self._is_undecided():
                            continue
                        if self._tokens_of_help():
                            return
                        if not self._closes():  # which is no step
                            self._help.helped.append(False)
                    for one in (*self._held, *(() if self._held else (piece,))):
                        yield self._noted(one)
                    self._held.clear()

    async def _ask(self) -> list[RequestOutput]:
        """The helper's step; where it fails, what our own model had begun."""
        held, self._held = self._held, []
        wanted, started = self._help.wanted, time.perf_counter()
        try:
            one_line = self._rule.policy != "reflect"
            step = await self._helper.write(self._so_far(), self._params, wanted, one_line=one_line)
        except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:
            logger.warning("The helper did not write a step: %r", error)
            self._help.failed += 1
            step = []
        self._help.spans.append((started, time.perf_counter()))
        step = step[:wanted]
        if not step or step == self._last_step:
            self._asks = False  # it is away, or goes in a circle
            self._help.helped.append(False)
            return held
        if (end := self._run.engine.hybrid.end_of_thinking) in step:
            step = step[: step.index(end) + 1]
        self._help.helped.append(True)
        self._help.tokens += len(step)
        self._last_step = step
        self._run.record.discarded_tokens += len(held)
        return [self._as_output(held[0], step)]

    def _pieces(self, output: RequestOutput) -> Iterable[RequestOutput]:
        """The output token by token, where steps may begin in it."""
        (choice,) = output.outputs
        token_ids = list(choice.token_ids)
        if len(token_ids) < 2 or not self._may_ask():
            yield output
            return
        tokenizer, done = self._run.engine.get_tokenizer(), 0
        for place, token in enumerate(token_ids):
            is_last, part, piece = place == len(token_ids) - 1, copy.copy(choice), copy.copy(output)
            end = len(tokenizer.decode(token_ids[: place + 1], skip_special_tokens=self._params.skip_special_tokens))
            part.token_ids, part.text = [token], choice.text[done:] if is_last else choice.text[done:end]
            part.logprobs = choice.logprobs[place : place + 1] if choice.logprobs else None
            piece.outputs, piece.finished, done = [part], output.finished and is_last, end
            if not is_last:
                part.finish_reason = part.stop_reason = None
            yield piece

    def _is_looked_at(self, piece: RequestOutput) -> bool:
        """Whether it is of the beginning of a step."""
        token_ids = piece.outputs[0].token_ids
        if not self._may_ask() or not token_ids or not piece.outputs[0].logprobs:
            return False
        return bool(self._held) or (self._begins and not self._run.engine.boundaries.is_blank(token_ids[0]))

    def _is_undecided(self) -> bool:
        """Whether too little of a step was written to say who writes it."""
        last = self._held[-1]
        is_whole = last.finished or self._run.engine.boundaries.is_end(last.outputs[0].token_ids[0]) or self._closes()
        return len(self._held) < self._rule.peek_tokens and not is_whole

    def _tokens_of_help(self) -> int:
        """How many the helper may write in place of what is held; 0: that is given."""
        entropy = entropy_of(self._held[0].outputs[0])
        beginning = "".join(piece.outputs[0].text for piece in self._held)
        wanted = tokens_of_help(self._rule, entropy, beginning, self._helper.glimpses, self._help.helped, self._chance)
        self._helper.glimpses.add(entropy)
        left = min(self._rule.max_tokens - self._help.tokens, self._room_left(), self._room_in_context())
        self._help.wanted = 0 if self._closes() or self._held[-1].finished else max(0, min(wanted, left))
        return self._help.wanted

    def _closes(self) -> bool:
        """Whether thinking ends in what is held."""
        return any(self._run.engine.hybrid.end_of_thinking in piece.outputs[0].token_ids for piece in self._held)

    def _may_ask(self) -> bool:
        return self._is_thinking and self._asks and self._help.tokens < self._rule.max_tokens

    def _noted(self, output: RequestOutput) -> RequestOutput:
        """What is given becomes part of the chain."""
        token_ids = list(output.outputs[0].token_ids)
        self._token_ids += token_ids
        self._is_thinking = self._is_thinking and self._run.engine.hybrid.end_of_thinking not in token_ids
        boundaries = self._run.engine.boundaries
        if token_ids and not (self._begins and boundaries.is_blank(token_ids[-1])):
            self._begins = boundaries.is_end(token_ids[-1])
        return output

    def _as_output(self, like: RequestOutput, step: list[int]) -> RequestOutput:
        """The helper's step, as our engine would give it. Where it fills the limit, it is the last."""
        text = self._run.engine.get_tokenizer().decode(step, skip_special_tokens=self._params.skip_special_tokens)
        is_last = len(step) >= self._room_left()
        choice = CompletionOutput(
            0, text, step, cumulative_logprob=None, logprobs=None, finish_reason="length" if is_last else None
        )
        return RequestOutput(like.request_id, None, self._run.question.token_ids, None, [choice], finished=is_last)

    def _so_far(self) -> list[int]:
        return [*self._prompt["prompt_token_ids"], *self._token_ids]

    def _room_left(self) -> int:
        assert self._params.max_tokens is not None, "vLLM's serving layer sets a limit"
        return self._params.max_tokens - len(self._token_ids)

    def _room_in_context(self) -> int:
        """For a step, and a token of our own after it."""
        return self._run.engine.model_config.max_model_len - len(self._so_far()) - 1


def entropy_of(choice: CompletionOutput) -> float:
    """Of its first token, among those that were looked at; nats."""
    assert choice.logprobs, "glimpses ask for log-probabilities"
    logs = [entry.logprob for entry in choice.logprobs[0].values() if entry.logprob > -math.inf]
    mass = math.log(sum(map(math.exp, logs)))
    return -sum(math.exp(log - mass) * (log - mass) for log in logs)
