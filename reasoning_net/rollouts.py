"""Replies of the frozen base in bulk, for the offline stages: on the vLLM engine, or on transformers as the reference.

The base never changes, so the engine never has its weights synced: a step of training sends other latents, as prompt
embeddings, and nothing else.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Internal, Share
from reasoning_net.precision import autocast
from reasoning_net.tasks import Example, Task

Backend = Literal["vllm", "transformers"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy by default. The paper samples at temperature 0.6, top-p 0.95."""

    max_tokens: PositiveInt = 24
    """Limit on a reply."""
    temperature: NonNegativeFloat = 0.0
    """0: greedy."""
    top_p: Share = 1.0
    """Sample from the likeliest tokens of this mass."""
    copies: Annotated[int, Internal] = 1
    """Replies per question."""
    seed: Annotated[int | None, Internal] = None
    confidence: Annotated[bool, Internal] = False
    """Also the probability of each reply's least certain token (vLLM only)."""
    logprobs: Annotated[int, Internal] = 0
    """With the confidence, also the log-probabilities of as many likeliest tokens at each token of a reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    token_ids: list[int]
    """With the end-of-turn token, unless the reply was cut."""
    text: str
    finished: bool
    confidence: float | None = None
    logprobs: Sequence[Mapping[int, Any]] | None = None
    """By token id, at each token of the reply: vLLM's `Logprob`, the sampled token's first."""


class Rollouts(Protocol):
    """Where replies come from."""

    def from_latents(
        self, prompts: Sequence[list[int]], latents: Tensor, sampling: Sampling, *, think_on: bool = False
    ) -> list[list[Reply]]:
        """Replies to each X after the latent layout with z (B, N, d): B lists of `copies`. With `think_on` they start with the
        thinking that goes on after z."""
        ...

    def from_tokens(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Reply]]:
        """Replies to token prompts as they are."""
        ...


def prepare_environment(model: str, kv_cache_gib: int = 1) -> None:
    """What vLLM reads from the environment, before it is imported; what the user has set wins."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # our hooks are in the V1 runner
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(kv_cache_gib))
    if not torch.cuda.is_available():
        # The scheduler computes, as on one GPU. Else vLLM gives the worker a process of its own, on all cores but one: there
        # the scheduler waits for it in a busy loop.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def start(backend: Backend, base: FrozenBase, model: str, layout: LayoutIds, max_model_len: int | None = None) -> Rollouts:
    return VllmRollouts(model, layout, max_model_len) if backend == "vllm" else TransformersRollouts(base, layout)


class VllmRollouts:
    """vLLM's offline engine. X is one shared prefix of all copies, and of every step that asks the same question again."""

    def __init__(self, model: str, layout: LayoutIds, max_model_len: int | None = None) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        prepare_environment(model)
        on_cuda = torch.cuda.is_available()
        from vllm import LLM

        # On a GPU the network that is trained needs room beside the engine.
        options: dict[str, Any] = (
            {"gpu_memory_utilization": 0.45}
            if on_cuda
            # Without chunks: vLLM 0.32 stops on a CPU when a request with a seed is prefilled in parts.
            else {"block_size": 32, "dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
        )
        self._layout = layout
        self._llm = LLM(
            model, enable_prompt_embeds=True, max_model_len=max_model_len, max_num_seqs=256, use_tqdm_on_load=False, **options
        )

    def close(self) -> None:
        """Stop the engine's process."""
        self._llm.llm_engine.engine_core.shutdown()

    def from_latents(
        self, prompts: Sequence[list[int]], latents: Tensor, sampling: Sampling, *, think_on: bool = False
    ) -> list[list[Reply]]:
        latents = latents.detach().float().cpu()
        number = latents.shape[1]
        suffix = self._layout.opened(number) if think_on else self._layout.latent(number)
        dtype = self._llm.llm_engine.model_config.dtype
        requests = []
        for token_ids, z in zip(prompts, latents, strict=True):
            ids = [*token_ids, *suffix]
            start = len(token_ids) + len(self._layout.before_latents)
            embeds = torch.zeros(len(ids), z.shape[1], dtype=dtype)
            embeds[start : start + len(z)] = z
            is_token = [True] * len(ids)
            is_token[start : start + len(z)] = [False] * len(z)
            requests.append({"prompt_token_ids": ids, "prompt_embeds": embeds, "prompt_is_token_ids": is_token})
        return self._generate(requests, sampling)

    def from_tokens(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Reply]]:
        return self._generate([{"prompt_token_ids": ids} for ids in prompts], sampling)

    def _generate(self, requests: list[dict[str, Any]], sampling: Sampling) -> list[list[Reply]]:
        from vllm import SamplingParams

        # A seed per request: else questions that come together would share their random numbers.
        params = [
            SamplingParams(
                n=sampling.copies,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=None if sampling.seed is None else sampling.seed * 1_000_003 + index * sampling.copies,
                skip_special_tokens=False,
                logprobs=sampling.logprobs if sampling.confidence else None,
            )
            for index in range(len(requests))
        ]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        return [[_reply(one, sampling) for one in output.outputs] for output in outputs]


def _reply(output: Any, sampling: Sampling) -> Reply:
    """vLLM's output as a reply."""
    logprobs = output.logprobs if sampling.logprobs else None
    confidence = least_certain(output.logprobs)
    return Reply(list(output.token_ids), output.text, output.finish_reason == "stop", confidence, logprobs)


def least_certain(logprobs: Sequence[Mapping[int, Any]] | None) -> float | None:
    """The least probability that a token of a reply had when it was sampled; None without vLLM's log-probabilities."""
    return math.exp(min(next(iter(step.values())).logprob for step in logprobs)) if logprobs else None


class TransformersRollouts:
    """The reference: the same replies (greedily) from transformers."""

    def __init__(self, base: FrozenBase, layout: LayoutIds) -> None:
        self._base, self._layout = base, layout

    def from_latents(
        self, prompts: Sequence[list[int]], latents: Tensor, sampling: Sampling, *, think_on: bool = False
    ) -> list[list[Reply]]:
        closing = () if think_on else self._layout.after_latents
        prefix = self._base.between(self._layout.before_latents, latents.detach(), closing)
        return self._generate(prompts, prefix, sampling)

    def from_tokens(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Reply]]:
        last = torch.tensor([[ids[-1]] for ids in prompts], device=self._base.device)
        return self._generate([ids[:-1] for ids in prompts], self._base.embed(last), sampling)

    def _generate(self, prompts: Sequence[list[int]], prefix: Tensor, sampling: Sampling) -> list[list[Reply]]:
        base = self._base
        with torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            rows = base.generate(
                base.read(prompts), prefix, sampling.max_tokens,
                copies=sampling.copies, temperature=sampling.temperature, top_p=sampling.top_p,
            )  # fmt: skip
        texts, end, most = base.tokenizer.batch_decode(rows), int(base.tokenizer.eos_token_id), sampling.max_tokens
        replies = [
            Reply([*row, end], text, True) if len(row) < most else Reply(row, text, False)
            for row, text in zip(rows, texts, strict=True)
        ]
        return [replies[at : at + sampling.copies] for at in range(0, len(replies), sampling.copies)]


def think(net: ReasoningNet, prompt: Prompt, num_latents: int) -> Tensor:
    """The latents z (B, N, d) of the questions that the base has read."""
    with autocast(prompt.mask.device):
        return net(prompt.hidden_states, prompt.embeddings, prompt.mask, num_latents)


@torch.no_grad()
def latent_replies(
    net: ReasoningNet, base: FrozenBase, rollouts: Rollouts, prompts: list[list[int]], num_latents: int, sampling: Sampling
) -> list[list[Reply]]:
    """Replies after the latents that the network computes for each question."""
    return rollouts.from_latents(prompts, think(net, base.read(prompts), num_latents), sampling)


def noisy_replies(
    rollouts: Rollouts, prompts: Sequence[list[int]], latents: Tensor, noise: Tensor | None, sampling: Sampling
) -> list[list[Reply]]:
    """Replies after latents (B, N, d); with noise, (B, copies, N, d), each copy after latents of its own."""
    if noise is None:
        return rollouts.from_latents(prompts, latents, sampling)
    copies = sampling.copies
    noisy = (latents[:, None].float() + noise).flatten(0, 1)
    each = [prompt for prompt in prompts for _ in range(copies)]
    replies = [reply for (reply,) in rollouts.from_latents(each, noisy, replace(sampling, copies=1))]
    return [replies[at : at + copies] for at in range(0, len(replies), copies)]


def greedy_accuracy(
    net: ReasoningNet, base: FrozenBase, rollouts: Rollouts, task: Task, examples: list[Example], num_latents: int,
    max_tokens: int = 24,
) -> float:  # fmt: skip
    """In latent mode, as it will be served."""
    correct = 0
    for at in range(0, len(examples), 128):
        batch = examples[at : at + 128]
        prompts = [base.prompt_ids(example.messages) for example in batch]
        replies = latent_replies(net, base, rollouts, prompts, num_latents, Sampling(max_tokens=max_tokens))
        correct += sum(task.is_correct(reply.text, e.answer) for (reply, *_), e in zip(replies, batch, strict=True))
    return correct / len(examples)
