"""How true explanations are, where it is known what an answer rests on.

A line's truth are the lines that set, last before it, the values that it states; a question's, the sentences that its answer is
computed from. Beside them stands what needs no gradients: the line before, a sentence's length, its place, its having a number.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from reasoning_net.analysis.why_answers import DIRECT, EXPLICIT, LATENT, Answer, Explanation, causes, traced
from reasoning_net.attribution import SIGNALS
from reasoning_net.tables import table
from router.figures import auroc, known

LINE_BEFORE = "the line before"


def summarise(explanations: Sequence[Explanation]) -> dict[str, Any]:
    known = [one for one in explanations if one.reads is not None]
    chains = [one for one in known if len(one.answers[EXPLICIT].lines) == len(one.reads or ())]
    modes = list(explanations[0].answers)
    return {
        "questions": len(explanations),
        "known": len(known),
        "chains": len(chains),
        "right": {mode: _mean([one.right[mode] for one in explanations]) for mode in modes},
        "lines": _lines(chains) if chains else {},
        "own sentence": {signal: _own_sentence(chains, signal) for signal in SIGNALS} if chains else {},
        "sentences": _sentences(known) if known else {},
        "beside": {
            signal: _mean([one.answers[LATENT].share_beside[signal] for one in explanations])
            for signal in SIGNALS
            if LATENT in modes
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def _area(scores: Sequence[float], labels: Sequence[float]) -> float | None:
    area = auroc(torch.tensor(scores), torch.tensor(labels)) if scores else math.nan
    return known(area)


def _lines(chains: Sequence[Explanation]) -> dict[str, dict[str, float | None]]:
    """How well shares of the lines before tell those that a line rests on."""
    figures = {LINE_BEFORE: _edges(chains, lambda _, line: [float(at == line - 1) for at in range(line)])}
    for signal in SIGNALS:

        def shares(one: Explanation, line: int, signal: str = signal) -> list[float]:
            first = len(one.sentences)
            return one.answers[EXPLICIT].shares[signal][line][first : first + line]

        figures[signal] = _edges(chains, shares)
    return figures


def _edges(chains: Sequence[Explanation], scorer: Callable[[Explanation, int], list[float]]) -> dict[str, float | None]:
    right, named, sources, top, hard, restated = 0, 0, 0, list[bool](), list[bool](), list[bool]()
    scores, labels = list[float](), list[float]()
    for one in chains:
        for line, reads in enumerate(one.reads or ()):
            if not reads:
                continue
            values = scorer(one, line)
            found = causes(values)
            right, named, sources = right + len({*found} & {*reads}), named + len(found), sources + len(reads)
            top.append(found[:1] != [] and found[0] in reads)
            restated.append(found[:1] != [] and found[0] >= min(reads))
            hard += [] if line - 1 in reads else [top[-1]]
            scores += values
            labels += [float(at in reads) for at in range(line)]
    return {
        "first": _mean(top),
        "first, where it is not the line before": _mean(hard),
        "first, or a line that restates its values": _mean(restated),
        "precision": round(right / max(1, named), 4),
        "recall": round(right / max(1, sources), 4),
        "AUROC": _area(scores, labels),
    }


def _own_sentence(chains: Sequence[Explanation], signal: str) -> float | None:
    """How often the sentence that a line restates is the one that it rests on most."""
    hits = []
    for one in chains:
        for line, sentence in enumerate(range(*one.events.indices(len(one.sentences))), 2):
            row = one.answers[EXPLICIT].shares[signal][line][: len(one.sentences)]
            hits.append(row.index(max(row)) == sentence)
    return _mean(hits)


class _Sentence(NamedTuple):
    """One that tells what happens."""

    score: float
    """Of all that the question's have, times their number: 1 where all have the same."""
    share: float
    matters: bool
    has_number: bool
    is_right: bool
    """The question's answer."""


def _sentences(known: Sequence[Explanation]) -> dict[str, dict[str, float | None]]:
    """How well scores tell sentences that matter from those that change nothing."""
    figures: dict[str, dict[str, float | None]] = {}
    for name, (mode, scorer) in _scorers(known[0]).items():
        scored = [sentence for one in known for sentence in _scored(one, scorer(one), one.right[mode])]
        mattering = [sum(s.share for s in _scored(one, scorer(one), True) if s.matters) for one in known]
        figures[name] = {
            "AUROC": _told_apart(scored),
            "with a number": _told_apart(s for s in scored if s.has_number),
            "right answers": _told_apart(s for s in scored if s.is_right),
            "wrong answers": _told_apart(s for s in scored if not s.is_right),
            "their share": _mean(mattering),
        }
    return figures


def _told_apart(sentences: Iterable[_Sentence]) -> float | None:
    sentences = list(sentences)
    return _area([s.score for s in sentences], [float(s.matters) for s in sentences])


def _scored(one: Explanation, scores: Sequence[float], is_right: bool) -> list[_Sentence]:
    here, texts, matters = scores[one.events], one.sentences[one.events], one.matters or ()
    total = sum(here) or 1.0
    return [
        _Sentence(score / total * len(here), score / total, does, any(map(str.isdigit, text)), is_right)
        for score, text, does in zip(here, texts, matters, strict=True)
    ]


_Scorer = Callable[[Explanation], Sequence[float]]


def _scorers(first: Explanation) -> dict[str, tuple[str, _Scorer]]:
    """By name: whose answer, and the scores of a question's sentences."""

    def of(mode: str, read: Callable[[Answer, str], Sequence[float]], signal: str) -> tuple[str, _Scorer]:
        return mode, lambda one: read(one.answers[mode], signal)

    scorers: dict[str, tuple[str, _Scorer]] = {
        "its tokens": (EXPLICIT, lambda one: one.sentence_tokens),
        "its having a number": (EXPLICIT, lambda one: [float(any(map(str.isdigit, text))) for text in one.sentences]),
        "its place": (EXPLICIT, lambda one: range(1, len(one.sentences) + 1)),
    }
    for signal in SIGNALS:
        scorers[f"{DIRECT}: {signal}"] = of(DIRECT, lambda answer, name: answer.shares[name][-1], signal)
        by_lines = of(
            EXPLICIT, lambda answer, name: traced(answer, name, len(answer.shares[name][0]) - len(answer.lines)), signal
        )
        scorers[f"{EXPLICIT}, by way of lines: {signal}"] = by_lines
        if LATENT in first.answers:
            scorers[f"{LATENT}, through the latents: {signal}"] = of(LATENT, lambda answer, name: answer.through[name], signal)
            scorers[f"{LATENT}, beside them: {signal}"] = of(LATENT, lambda answer, name: answer.beside[name], signal)
    return scorers


def markdown(figures: Mapping[str, Any]) -> str:
    right = ", ".join(f"{mode} {share:.3f}" for mode, share in figures["right"].items())
    parts = [f"{figures['questions']} questions; right: {right}."]
    if figures["lines"]:
        parts[0] += f" {figures['chains']} of {figures['known']} chains have a line for each sentence."
        header = list(figures["lines"][LINE_BEFORE])
        rows = [(name, *(_cell(of[key]) for key in header)) for name, of in figures["lines"].items()]
        parts.append(table(["lines that a line rests on", *header], rows))
        own = ", ".join(f"{_cell(share)} by {signal}" for signal, share in figures["own sentence"].items())
        parts.append(f"The sentence that a line rests on most is its own: {own}.")
    if figures["sentences"]:
        header = list(figures["sentences"]["its place"])
        rows = [(name, *(_cell(of[key]) for key in header)) for name, of in figures["sentences"].items()]
        parts.append(table(["sentences that matter, by", *header], rows))
    if figures["beside"]:
        beside = ", ".join(f"{share:.1%} by {signal}" for signal, share in figures["beside"].items())
        parts.append(f"Of what a latent answer takes from the question, past the latents: {beside}.")
    return "\n\n".join(parts)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
