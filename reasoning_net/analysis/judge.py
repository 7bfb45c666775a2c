"""Answers from parts of chains: how often they are right, how natural the part is, and how its steps bear on each other.

Shapes: R parts, P tokens of the longest one, V vocabulary, n steps.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from reasoning_net.analysis.causal import Verdict
from reasoning_net.frozen import Prompt
from reasoning_net.options import Share
from reasoning_net.padding import padded
from reasoning_net.step_probe import StepReader, joined
from reasoning_net.tasks import Task

_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    samples: PositiveInt = 5
    """Answers to each part of a chain."""
    temperature: NonNegativeFloat = 0.6
    """Of these answers; 0: greedy."""
    top_p: Share = 0.95
    """Sample from the likeliest tokens of this mass."""
    threshold: Share = 0.8
    """τ: the share of right answers, and the attainability, that a part has to reach."""
    most_without: Share = 0.2
    """Questions of which a larger share is right without a chain are left out."""
    max_tokens: PositiveInt = 24
    """Limit on an answer."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A chain that is looked into."""

    prompt: list[int]
    """X."""
    steps: tuple[str, ...]
    answer: str


class Judge:
    """Answers for a batch of chains; the base has read their questions once."""

    def __init__(
        self, reader: StepReader, task: Task, options: JudgeOptions, subjects: Sequence[Subject], seed: int
    ) -> None:  # fmt: skip
        self._reader, self._task, self._options, self._subjects = reader, task, options, subjects
        self._base, self._layout, self._seed = reader.base, reader.layout, seed
        self._prompt = self._base.read([[*subject.prompt, *self._layout.before_latents] for subject in subjects])

    def easy(self) -> list[bool]:
        """Of which questions too large a share of answers is right without a chain."""
        prompt = self._base.read([subject.prompt for subject in self._subjects])
        right = self._right(prompt, range(len(self._subjects)), self._layout.direct, self._options.samples)
        return [number > self._options.most_without * self._options.samples for number in right]

    def alone(self, of: Sequence[int]) -> list[list[bool]]:
        """Which steps of these subjects suffice without any other."""
        texts = [(at, step.strip()) for at in of for step in self._subjects[at].steps]
        suffice = iter([share >= self._options.threshold for share, _ in self.answers(texts)])
        return [[next(suffice) for _ in self._subjects[at].steps] for at in of]

    def scales(self, of: Sequence[int]) -> list[tuple[float, float]]:
        """Perplexities of these subjects' chains, and of their answers said straight away."""
        whole = [(at, joined(self._subjects[at].steps, range(len(self._subjects[at].steps)))) for at in of]
        straight = [(at, f"The answer is {self._subjects[at].answer}.") for at in of]
        found = [perplexity for _, perplexity in self.answers([*whole, *straight], sampled=False)]
        return list(zip(found[: len(of)], found[len(of) :], strict=True))

    def verdicts(self, parts: Sequence[tuple[int, str]], scales: Sequence[tuple[float, float]]) -> list[Verdict]:
        """Of parts of the subjects' chains, each on a scale."""
        threshold = self._options.threshold
        return [
            Verdict(share >= threshold, attainability(perplexity, *scale) >= threshold)
            for (share, perplexity), scale in zip(self.answers(parts), scales, strict=True)
        ]

    @torch.no_grad()
    def answers(self, texts: Sequence[tuple[int, str]], *, sampled: bool = True) -> list[tuple[float, float]]:
        """(share of right answers, perplexity) after the question with that number and a text as its thinking. The share is 0
        where none are `sampled`."""
        found: list[tuple[float, float]] = []
        for at in range(0, len(texts), _ROWS):
            part = texts[at : at + _ROWS]
            found += self._answered([of for of, _ in part], [self._reader.encode(text) for _, text in part], sampled)
        return found

    def _answered(self, of: Sequence[int], thinking: Sequence[list[int]], sampled: bool) -> list[tuple[float, float]]:
        ids = padded(thinking, fill=-1).to(self._base.device)  # (R, P)
        kept, ids = ids >= 0, ids.clamp(min=0)
        rows = self._prompt.rows(torch.tensor(of, device=self._base.device))
        before = rows.hidden_states[:, -1:]
        states, read = self._base.read_on(rows, self._base.embed(ids), kept)
        logits = self._base.logits(torch.cat([before, states[:, :-1]], dim=1)).float()  # (R, P, V)
        losses = -logits.log_softmax(-1).gather(-1, ids[:, :, None]).squeeze(-1) * kept
        perplexities = (losses.sum(1) / kept.sum(1)).exp().tolist()
        shares = self._shares(read, of, self._layout.after_latents) if sampled else [0.0] * len(of)
        return list(zip(shares, perplexities, strict=True))

    def _embedded(self, ids: Sequence[int], rows: int) -> Tensor:
        return self._base.embed(torch.tensor([list(ids)], device=self._base.device)).expand(rows, -1, -1)

    def _shares(self, prompt: Prompt, of: Sequence[int], closing: tuple[int, ...]) -> list[float]:
        """Of right answers to what was read, which belongs to these subjects. What cannot reach the threshold any more is not
        asked again, and keeps what it has."""
        most = self._options.samples if self._options.temperature else 1
        first = min(most, most - math.ceil(self._options.threshold * most - 1e-9) + 1)
        right = self._right(prompt, of, closing, first)
        going_on = [at for at, number in enumerate(right) if number] if first < most else []
        if going_on:
            more = self._right(prompt.rows(torch.tensor(going_on)), [of[at] for at in going_on], closing, most - first)
            for at, number in zip(going_on, more, strict=True):
                right[at] += number
        return [number / most for number in right]

    def _right(self, prompt: Prompt, of: Sequence[int], closing: tuple[int, ...], copies: int) -> list[int]:
        """How many of so many answers are right."""
        options, base = self._options, self._base
        with torch.random.fork_rng():
            torch.manual_seed(self._seed + copies)
            replies = base.generate(
                prompt, self._embedded(closing, len(of)), options.max_tokens, copies=copies,
                temperature=options.temperature, top_p=options.top_p,
            )  # fmt: skip
        texts = iter(base.tokenizer.batch_decode(replies))
        return [sum(self._task.is_correct(next(texts), self._subjects[at].answer) for _ in range(copies)) for at in of]


def attainability(perplexity: float, whole: float, straight: float) -> float:
    """1 where a part is as natural as the whole chain, 0 where it is as unlikely as the answer straight away."""
    return 1 - (perplexity - whole) / (straight - whole) if straight > whole else 0.0


class Influence:
    """How much the probabilities of a step's tokens change with the embeddings of each step before it, as the norm of the
    gradient; a backward pass for each step that is asked for."""

    def __init__(self, reader: StepReader, subject: Subject) -> None:
        self._reader, self._subject = reader, subject
        self._columns: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        """Of the steps before it, (step,)."""
        if step not in self._columns:
            embeddings, probabilities, spans = self._graph
            start, end = spans[step]
            (gradient,) = torch.autograd.grad(probabilities[start:end].sum(), embeddings, retain_graph=True)
            norms = [gradient[0, first:last].norm() for first, last in spans[:step]]
            self._columns[step] = torch.stack(norms).cpu() if norms else torch.zeros(0)
        return self._columns[step]

    @functools.cached_property
    def _graph(self) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Embeddings (1, P, d) and probabilities (P,) of the chain's tokens, and which of them each step has."""
        base = self._reader.base
        ids, spans = self._reader.spans(self._subject.steps)
        prompt = base.read([[*self._subject.prompt, *self._reader.layout.before_latents]])
        wanted = torch.tensor([ids], device=base.device)
        embeddings = base.embed(wanted).requires_grad_()
        states = base.extend(prompt.copy(), embeddings)
        logits = base.logits(torch.cat([prompt.hidden_states[:, -1:], states[:, :-1]], dim=1)).float()
        return embeddings, logits.softmax(-1).gather(-1, wanted[:, :, None])[0, :, 0], spans
