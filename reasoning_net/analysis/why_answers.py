"""Explanations of answers, and how they read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from reasoning_net.attribution import PRODUCT

DIRECT, EXPLICIT, LATENT = "direct", "explicit", "latent"
_COVERED, _MOST = 0.5, 3  # what an explanation names: the fewest causes with this share together, and no more than so many
Shares = dict[str, list[list[float]]]
"""By signal, for each target, of the sentences and then the lines."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and what it rests on. Targets are a chain's lines and then the answer; of a latent answer, the latents."""

    text: str
    lines: list[str]
    shares: Shares
    phrases: list[list[str]]
    """For each target and sentence, its words that matter most."""
    rows: dict[str, list[float]] = field(default_factory=dict)
    """By signal, of the latents."""
    through: dict[str, list[float]] = field(default_factory=dict)
    """By signal, of the sentences, through all latents together."""
    beside: dict[str, list[float]] = field(default_factory=dict)
    """The same, where the answer reads the question itself."""
    share_beside: dict[str, float] = field(default_factory=dict)
    """Of all that goes back to the question."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One question, and its answers in every mode."""

    question: str
    level: int
    family: str
    sentences: list[str]
    sentence_tokens: list[int]
    answers: dict[str, Answer]
    right: dict[str, bool]
    reads: list[list[int]] | None
    """For each line of a chain, the lines that it rests on; None where that is not known."""
    matters: list[bool] | None
    """Of the sentences that tell what happens, the last but one and those before it."""

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Explanation":
        answers = {mode: Answer(**answer) for mode, answer in line["answers"].items()}
        return cls(**{name: value for name, value in line.items() if name != "text"} | {"answers": answers})

    @property
    def events(self) -> slice:
        """Which sentences tell what happens: what stands before them is the start, and the last one asks."""
        assert self.matters is not None, "known questions are asked for"
        return slice(len(self.sentences) - 1 - len(self.matters), len(self.sentences) - 1)


def traced(answer: Answer, signal: str, num_sentences: int) -> list[float]:
    """How much of an answer goes back to each sentence, by way of the chain's lines."""
    weights = [0.0] * len(answer.lines)
    reached = [0.0] * num_sentences
    for target in reversed(range(len(answer.lines) + 1)):
        weight = 1.0 if target == len(answer.lines) else weights[target]
        row = answer.shares[signal][target]
        reached = [sum_ + weight * share for sum_, share in zip(reached, row[:num_sentences], strict=True)]
        weights = [sum_ + weight * share for sum_, share in zip(weights, row[num_sentences:], strict=True)]
    return reached


def causes(shares: Sequence[float]) -> list[int]:
    """The fewest that have a good part of all together, largest first."""
    order, covered, found = sorted(range(len(shares)), key=lambda at: -shares[at]), 0.0, list[int]()
    for at in order[:_MOST]:
        if covered >= _COVERED * sum(shares) or not shares[at]:
            break
        covered += shares[at]
        found.append(at)
    return found


def readable(explanation: Explanation) -> str:
    """From each answer back, as far as it goes."""
    parts = [explanation.question]
    for mode, answer in explanation.answers.items():
        told = _latents_told(answer) if answer.rows else list(_told(explanation, answer))
        parts.append("\n".join([f"{mode}: {answer.text or 'no answer in time'}", *(f"  {line}" for line in told)]))
    return "\n\n".join(parts)


def _told(explanation: Explanation, answer: Answer) -> Iterator[str]:
    number, waiting = len(explanation.sentences), [len(answer.lines)]
    told = set[int]()
    while waiting:
        told.add(target := waiting.pop(waiting.index(max(waiting))))
        row = answer.shares[PRODUCT][target]
        named = causes(row)
        texts = [
            f'"{answer.phrases[target][at]}" ({row[at]:.2f})' if at < number else f"line {at - number + 1} ({row[at]:.2f})"
            for at in named
        ]
        what = "answer" if target == len(answer.lines) else f'line {target + 1}, "{answer.lines[target]}"'
        yield f"{what} ← {', '.join(texts) or 'nothing before it'}"
        waiting += [at - number for at in named if at >= number and at - number not in {*told, *waiting}]


def _latents_told(answer: Answer) -> list[str]:
    rows = answer.rows[PRODUCT]
    named = ", ".join(f"latent {row + 1} ({rows[row]:.2f})" for row in causes(rows))
    told = [f"answer ← {named}; {answer.share_beside[PRODUCT]:.0%} of what goes back to the question goes beside the latents"]
    for row in causes(rows):
        shares = answer.shares[PRODUCT][row]
        told.append(
            f"latent {row + 1} ← "
            + ", ".join(f'"{answer.phrases[row][sentence]}" ({shares[sentence]:.2f})' for sentence in causes(shares))
        )
    return told
