"""What the base (and the network) makes of many questions: features that a probe may read, and labels that it learns.

Every question is answered several times in direct and in latent mode, and a part of them explicitly, on the vLLM engine. The
shares of right answers are the labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.rollouts import Reply, Rollouts, Sampling, think
from reasoning_net.tasks import Example, Task
from router.probe import Feature, Probe, ProbeConfig

_BATCH = 128


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

    def __getitem__(self, rows: slice | Tensor) -> "Observations":
        groups = (self.features, self.labels, self.baselines, self.answers, self.by_latents)
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
    """Of direct and latent answers; `thinking`: of those that think in text."""
    thinking: Sampling
    thinks_on: bool
    """Thinking in text goes on from the latents."""
    layers: tuple[int, ...]
    """Earlier layers whose states are kept."""
    seed: int
    ladder: tuple[int, ...] = ()
    """Smaller numbers of latents that questions are answered with as well."""

    @torch.no_grad()
    def observe(self, examples: Sequence[Example], explicit: Tensor) -> Observations:
        """Answer every question, and those of the rows `explicit` in text as well. Results are in the order of the examples."""
        features: tuple[Feature, ...] = ("last", "mean", "latents") if self.net else ("last", "mean")
        reader = Probe(ProbeConfig(base_hidden_size=self.base.hidden_size, features=features, layers=self.layers))
        prompts = [self.base.prompt_ids(example.messages) for example in examples]
        starts = tqdm(range(0, len(examples), _BATCH), desc="observe", unit="batch")
        batches = [self._answer(reader, at, examples[at : at + _BATCH], prompts[at : at + _BATCH]) for at in starts]
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
        labels |= self._think(examples, prompts, explicit)
        by_latents = {number: torch.cat([ladder[number] for ladder in ladders]) for number in self.ladder}
        return Observations(dict(zip(features, parts, strict=True)), labels, baselines, answers, by_latents)

    def _answer(
        self, reader: Probe, at: int, examples: Sequence[Example], prompts: list[list[int]]
    ) -> tuple[Tensor, "Answers", "Answers", Tensor, dict[int, Tensor]]:
        """Of a batch: what a probe may read (B, F), direct answers, those in the cheap mode, the first token's entropy (B,),
        and the shares of right answers with fewer latents (B,)."""
        sampling = replace(self.answering, seed=self.seed + at)
        prompt = self.base.read(prompts, self.layers)
        latents = think(self.net, prompt, self.num_latents) if self.net else None
        states = reader.features(prompt.all_states.float(), prompt.mask, latents)
        replies = self.engine.from_tokens([[*x, *self.layout.direct] for x in prompts], sampling)
        cheap = direct = Answers.of(replies, examples, self.task)
        by_latents = {}
        if latents is not None:
            cheap = Answers.of(self.engine.from_latents(prompts, latents, sampling), examples, self.task)
            for number in self.ladder:  # the first of many latents are the latents of a smaller number
                fewer = self.engine.from_latents(prompts, latents[:, :number], replace(sampling, confidence=False))
                by_latents[number] = Answers.of(fewer, examples, self.task).correct.mean(1)
        return states, direct, cheap, first_token_entropy(self.base, self.layout, prompt), by_latents

    def _think(self, examples: Sequence[Example], prompts: list[list[int]], rows: Tensor) -> dict[str, Tensor]:
        """Labels of answers that think in text, (n,); NaN where the question is not among the rows."""
        correct, tokens = (torch.full((len(examples),), math.nan) for _ in range(2))
        for part in tqdm(rows.split(2 * _BATCH), desc="think in text", unit="batch"):
            sampling, asked = replace(self.thinking, seed=self.seed + int(part[0])), [prompts[i] for i in part]
            if self.thinks_on and self.net:
                parts = [asked[at : at + _BATCH] for at in range(0, len(asked), _BATCH)]
                latents = torch.cat([think(self.net, self.base.read(some), self.num_latents) for some in parts])
                replies = self.engine.from_latents(asked, latents, sampling, think_on=True)
            else:
                replies = self.engine.from_tokens([[*ids, *self.layout.explicit] for ids in asked], sampling)
            thought = Answers.of(replies, [examples[i] for i in part], self.task, after="</think>")
            correct[part], tokens[part] = thought.correct[:, 0], thought.tokens[:, 0]
        return {"explicit": correct, "tokens": tokens}


def first_token_entropy(base: FrozenBase, layout: LayoutIds, prompt: Prompt) -> Tensor:
    """In nats, of the first token of a direct answer, (B,). The prompt's cache is used up."""
    direct = base.embed(torch.tensor([layout.direct], device=base.device)).expand(len(prompt.mask), -1, -1)
    log_probs = base.model.lm_head(base.extend(prompt, direct)[:, -1]).float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).cpu()
