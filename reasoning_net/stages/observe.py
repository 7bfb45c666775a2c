"""What the base (and the network) makes of many questions: features that a probe may read, and labels that it learns.

Every question is answered several times in direct and in latent mode, and a part of them explicitly, on the vLLM engine. The
shares of right answers are the labels.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from tqdm import tqdm

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.padding import padded
from reasoning_net.rollouts import Reply, Rollouts, Sampling, think
from reasoning_net.tasks import Example, Task
from router.probe import Feature, Probe, ProbeConfig

T = TypeVar("T")
_BATCH = 128
_SELDOM = 0.02


@dataclass(frozen=True, slots=True)
class Observations:
    """What the base (and the network) did on n questions."""

    features: dict[Feature, Tensor]  # (n, d)
    labels: dict[str, Tensor]
    """(n,): per mode the share of right answers; tokens of an explicit answer. NaN where a question was not asked."""
    baselines: dict[str, Tensor]
    """(n,): what a probe has to beat, higher for harder questions. `steps` is the task's level."""
    answers: dict[str, Tensor]
    """(n, S) of S answers in the cheap mode: `correct`; `confidence`, the probability of the least certain token; `tokens`.
    And (n,) of the direct answers: `direct tokens`."""
    by_latents: dict[int, Tensor] = field(default_factory=dict)
    """(n,) for each smaller number of latents: the share of right answers."""
    chains: dict[str, Tensor] = field(default_factory=dict)
    """(n,) where questions were thought through in text several times: the share of right answers (`right`), and the mean
    entropy of a token (`entropy`), in nats. NaN where a question was not asked."""

    def __getitem__(self, rows: slice | Tensor) -> "Observations":
        groups = (self.features, self.labels, self.baselines, self.answers, self.by_latents, self.chains)
        return Observations(*({name: values[rows] for name, values in group.items()} for group in groups))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Answers:
    """Several answers to each of n questions, (n, S) each."""

    correct: Tensor
    confidence: Tensor
    """Probability of the least certain token; NaN where it is not known."""
    tokens: Tensor

    @classmethod
    def of(cls, replies: list[list[Reply]], examples: Sequence[Example], task: Task, after: str | None = None) -> "Answers":
        """Graded. What follows `after` is the answer; where it is missing there is none."""

        def grade(reply: Reply, example: Example) -> float:
            return float(task.is_correct(reply.text.partition(after)[2] if after else reply.text, example.answer))

        return cls(
            torch.tensor([[grade(reply, e) for reply in group] for group, e in zip(replies, examples, strict=True)]),
            torch.tensor([[math.nan if r.confidence is None else r.confidence for r in group] for group in replies]),
            torch.tensor([[float(len(reply.token_ids)) for reply in group] for group in replies]),
        )

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__))


@dataclass(frozen=True, slots=True)
class Observer:
    """Who answers the questions, and how."""

    base: FrozenBase
    net: ReasoningNet | None
    num_latents: int
    engine: Rollouts
    layout: LayoutIds
    task: Task
    answering: Sampling
    """Of direct and latent answers; `thinking`: of those that think in text. Of several copies the first one is the label."""
    thinking: Sampling
    thinks_on: bool
    """Thinking in text goes on from the latents."""
    layers: tuple[int, ...]
    """Earlier layers whose states are kept."""
    seed: int
    ladder: tuple[int, ...] = ()
    """Smaller numbers of latents that questions are answered with as well."""

    @torch.no_grad()
    def observe(self, examples: Sequence[Example], explicit: Tensor, store: "Store | None" = None) -> Observations:
        """Answer every question, and those of the rows `explicit` in text as well. Results are in the order of the examples.

        `store`: what batches came to, as far as an earlier run has got.
        """
        kept = store.kept if store else _computed
        features: tuple[Feature, ...] = ("last", "mean", "latents") if self.net else ("last", "mean")
        reader = Probe(ProbeConfig(base_hidden_size=self.base.hidden_size, features=features, layers=self.layers))
        prompts = [self.base.prompt_ids(example.messages) for example in examples]
        starts = tqdm(range(0, len(examples), _BATCH), desc="observe", unit="batch")
        batches = [
            kept(f"answers-{at}", partial(self._answer, reader, at, examples[at : at + _BATCH], prompts[at : at + _BATCH]))
            for at in starts
        ]
        states, direct, cheap, entropies, ladders = zip(*batches, strict=True)
        of_direct, of_cheap = Answers.joined(direct), Answers.joined(cheap)
        labels = {"direct": of_direct.correct.mean(1)} | ({"latent": of_cheap.correct.mean(1)} if self.net else {})
        baselines = {
            "length": torch.tensor([float(len(ids)) for ids in prompts]),
            "steps": torch.tensor([float(example.level) for example in examples]),
            "entropy": torch.cat(entropies),
        }
        answers = {name: getattr(of_cheap, name) for name in Answers.__slots__} | {"direct tokens": of_direct.tokens.mean(1)}
        parts = torch.cat(states).split(reader.config.sizes(), dim=1)
        of_chains, chains = self._think(examples, prompts, explicit, kept)
        labels |= of_chains
        by_latents = {number: torch.cat([ladder[number] for ladder in ladders]) for number in self.ladder}
        return Observations(dict(zip(features, parts, strict=True)), labels, baselines, answers, by_latents, chains)

    def _answer(
        self, reader: Probe, at: int, examples: Sequence[Example], prompts: list[list[int]]
    ) -> tuple[Tensor, "Answers", "Answers", Tensor, dict[int, Tensor]]:
        """Of a batch: what a probe may read (B, F), direct answers, those in the cheap mode, the first token's entropy (B,),
        and the shares of right answers with fewer latents (B,)."""
        sampling = replace(self.answering, seed=self.seed + at)
        prompt = self.base.read(prompts, self.layers)
        latents = think(self.net, prompt, self.num_latents) if self.net else None
        states = reader.features(prompt.all_states.float(), prompt.mask, None if latents is None else latents.float()).cpu()
        replies = self.engine.from_tokens([[*x, *self.layout.direct] for x in prompts], sampling)
        cheap = direct = Answers.of(replies, examples, self.task)
        by_latents = {}
        if latents is not None:
            cheap = Answers.of(self.engine.from_latents(prompts, latents, sampling), examples, self.task)
            for number in self.ladder:  # the first of many latents are the latents of a smaller number
                fewer = self.engine.from_latents(prompts, latents[:, :number], replace(sampling, confidence=False))
                by_latents[number] = Answers.of(fewer, examples, self.task).correct.mean(1)
        return states, direct, cheap, first_token_entropy(self.base, self.layout, prompt), by_latents

    def _think(
        self, examples: Sequence[Example], prompts: list[list[int]], rows: Tensor, kept: "Kept"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labels of answers that think in text, (n,), and of several copies what all of them were like; NaN where the question
        is not among the rows."""
        correct, tokens, right, entropy = (torch.full((len(examples),), math.nan) for _ in range(4))
        for part in tqdm(rows.split(max(1, 2 * _BATCH // self.thinking.copies)), desc="think in text", unit="batch"):
            asked = [prompts[i] for i in part]
            compute = partial(self._thought, int(part[0]), [examples[i] for i in part], asked)
            thought, entropies = kept(f"chains-{int(part[0])}", compute)
            correct[part], tokens[part] = thought.correct[:, 0], thought.tokens[:, 0]
            if entropies is not None:
                right[part], entropy[part] = thought.correct.mean(1), entropies
        several = {"right": right, "entropy": entropy} if self.thinking.copies > 1 else {}
        return {"explicit": correct, "tokens": tokens}, several

    def _thought(self, first: int, examples: Sequence[Example], asked: list[list[int]]) -> tuple["Answers", Tensor | None]:
        """Answers that think in text; of several to a question also the mean entropy of a token, (B,)."""
        sampling = replace(self.thinking, seed=self.seed + first)
        if self.thinks_on and self.net:
            parts = [asked[at : at + _BATCH] for at in range(0, len(asked), _BATCH)]
            latents = torch.cat([think(self.net, self.base.read(some), self.num_latents) for some in parts])
            replies = self.engine.from_latents(asked, latents, sampling, think_on=True)
        else:
            replies = self.engine.from_tokens([[*ids, *self.layout.explicit] for ids in asked], sampling)
        thought = Answers.of(replies, examples, self.task, after=self.layout.end_of_thinking)
        if self.thinking.copies == 1:
            return thought, None
        return thought, mean_entropies(self.base, asked, [[one.token_ids for one in group] for group in replies])


class Kept(Protocol):
    """What a batch of that name came to: computed, or found."""

    def __call__(self, name: str, compute: Callable[[], T]) -> T: ...


def _computed(name: str, compute: Callable[[], T]) -> T:  # noqa: ARG001
    return compute()


class Store:
    """What batches came to, a file each, in a directory: a run that was killed goes on behind them."""

    def __init__(self, directory: Path, made_with: Mapping[str, Any]) -> None:
        """Raises `StageError` where what is kept was made with other settings."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        path, settings = directory / "made_with.json", json.dumps(made_with, indent=2, default=str)
        if path.is_file() and path.read_text() != settings:
            raise StageError(f"{directory} keeps what was made with other settings ({path.name}). Name another directory.")
        path.write_text(settings)

    def kept(self, name: str, compute: Callable[[], T]) -> T:
        path = self._directory / f"{name}.pt"
        if path.is_file():
            with torch.serialization.safe_globals([Answers]):
                return cast("T", torch.load(path, weights_only=True))
        new, found = path.with_suffix(".new"), compute()
        torch.save(found, new)
        new.replace(path)
        return found


def first_token_entropy(base: FrozenBase, layout: LayoutIds, prompt: Prompt) -> Tensor:
    """In nats, of the first token of a direct answer, (B,). The prompt's cache is used up."""
    states = prompt.hidden_states  # where a base answers at once, nothing stands before its answer
    if layout.direct:
        states = base.extend(
            prompt, base.embed(torch.tensor([layout.direct], device=base.device)).expand(len(prompt.mask), -1, -1)
        )
    log_probs = base.logits(states[:, -1]).float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).cpu()


@torch.no_grad()
def mean_entropies(base: FrozenBase, prompts: Sequence[list[int]], replies: Sequence[Sequence[list[int]]]) -> Tensor:
    """In nats, of a token of each question's replies, (B,): the mean over a reply's tokens, and then over its replies.

    Of the base's whole distribution, before temperature and top-p, from one forward over what was sampled: an engine tells the
    likeliest tokens only.
    """
    found = []
    for ids, group in zip(prompts, replies, strict=True):
        prompt = base.read([ids[:-1]]).rows(torch.zeros(len(group), dtype=torch.long, device=base.device))
        lengths = torch.tensor([len(reply) for reply in group], device=base.device)
        read = padded([[ids[-1], *reply[:-1]] for reply in group], fill=0).to(
            base.device
        )  # each predicts the reply's next token
        log_probs = base.logits(base.extend(prompt, base.embed(read))).float().log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        kept = torch.arange(read.shape[1], device=base.device) < lengths[:, None]
        found.append((entropies.where(kept, 0).sum(1) / lengths).mean())
    return torch.stack(found).cpu()


def doubts(observed: Observations) -> list[str]:
    """What a router that is fitted on these questions cannot do, in sentences for whoever fits it."""
    right = {mode: float(values.nanmean()) for mode, values in observed.labels.items() if mode != "tokens"}
    said = ", ".join(f"{mode} {share:.2f}" for mode, share in right.items())
    cheap = max(share for mode, share in right.items() if mode != "explicit")
    if max(right.values()) < _SELDOM:
        return [
            f"Hardly an answer is right in any mode ({said}), so there is nothing to choose between. Look at the column of the "
            "answers (--columns), the base's layout, and the limits --max-reply-tokens and --max-thinking-tokens."
        ]
    if cheap > 1 - _SELDOM:
        return [
            f"Nearly every answer is right without a chain ({said}): serve with --default-mode direct, or give harder data."
        ]
    if right["explicit"] <= cheap:
        return [f"Explicit answers are not better than the others ({said}), so auto has nothing to gain from chains."]
    return []
