"""What the requests of a bench add up to: percentiles, throughput and ratios, as tables, JSON and plots."""

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy import percentile

from reasoning_net.plots import Points, plot_lines
from reasoning_net.tables import table
from server.bench.client import Answer
from server.bench.load import ALONE, COMPARED, Load

_QUANTILES = (50, 90, 95, 99)
_MEASURES: dict[str, Callable[[Answer], float | None]] = {
    "time to first token": lambda answer: answer.first_token_seconds,
    "time per output token": lambda answer: answer.token_seconds,
    "end-to-end": lambda answer: answer.seconds,
}
Milliseconds = Mapping[str, float]
"""mean, p50, p90, p95, p99; empty where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    arm: str
    load: Load
    round: int
    started: float
    """When it was due, in seconds from the start of its arm's turn."""
    answer: Answer


@dataclass(frozen=True, slots=True)
class Figures:
    """One arm at one load point. Times are of answers; what failed is counted."""

    arm: str
    load: Load
    requests: int
    errors: Mapping[str, int]
    modes: Mapping[str, int]
    """Answers by the mode that gave them."""
    requests_per_second: float
    """Answers; the median of the rounds."""
    tokens_per_second: float
    tokens: float
    """Generated tokens of an answer, on average."""
    milliseconds: Mapping[str, Milliseconds]


def summarise(records: Sequence[Request]) -> list[Figures]:
    """By load point, and within one by arm."""
    loads, arms = dict.fromkeys(record.load for record in records), dict.fromkeys(record.arm for record in records)
    groups = ([r for r in records if (r.load, r.arm) == key] for key in itertools.product(loads, arms))
    return [_figures(group) for group in groups if group]


def _figures(records: Sequence[Request]) -> Figures:
    answers = [record.answer for record in records if not record.answer.error]
    rounds = [[r for r in records if r.round == round_] for round_ in sorted({r.round for r in records})]
    milliseconds = {}
    for name, measure in _MEASURES.items():
        if values := _milliseconds(answers, measure):
            quantiles = zip((f"p{q}" for q in _QUANTILES), percentile(values, _QUANTILES).tolist(), strict=True)
            figures = {"mean": statistics.fmean(values)} | dict(quantiles)
        else:
            figures = {}
        milliseconds[name] = {key: round(value, 3) for key, value in figures.items()}
    return Figures(
        arm=records[0].arm,
        load=records[0].load,
        requests=len(records),
        errors=dict(Counter(record.answer.error for record in records if record.answer.error).most_common()),
        modes=dict(Counter(answer.mode for answer in answers if answer.mode).most_common()),
        requests_per_second=round(statistics.median(_per_second(part, lambda _: 1) for part in rounds), 3),
        tokens_per_second=round(statistics.median(_per_second(part, lambda answer: answer.tokens) for part in rounds), 3),
        tokens=round(statistics.fmean(answer.tokens for answer in answers), 2) if answers else 0.0,
        milliseconds=milliseconds,
    )


def _milliseconds(answers: Sequence[Answer], measure: Callable[[Answer], float | None]) -> list[float]:
    """Of the answers that have this time."""
    return [seconds * 1000 for answer in answers if (seconds := measure(answer)) is not None]


def _per_second(records: Sequence[Request], amount: Callable[[Answer], int]) -> float:
    """What one turn brought, by the time from its start to its last answer."""
    seconds = max(record.started + record.answer.seconds for record in records)
    return sum(amount(record.answer) for record in records if not record.answer.error) / seconds


def ratios(figures: Sequence[Figures]) -> dict[str, float]:
    """Those whose arms and load points were measured: the median time alone, the throughput at the highest concurrency."""
    closed = [f.load.value for f in figures if f.load.loop == "closed" and f.load != ALONE]
    busiest = Load("closed", max(closed, default=0))
    alone = {f.arm: f.milliseconds["end-to-end"].get("p50", 0.0) for f in figures if f.load == ALONE}
    throughput = {f.arm: f.requests_per_second for f in figures if f.load == busiest}
    last = max((f.load.value for f in figures if f.load.loop == "turn"), default=0)
    turn = {f.arm: f.milliseconds["time to first token"].get("p50", 0.0) for f in figures if f.load == Load("turn", last)}
    wanted = [
        ("latent ÷ direct, time alone", alone, "latent", "direct"),
        ("explicit ÷ latent, time alone", alone, "explicit", "latent"),
        ("latent ÷ explicit, throughput", throughput, "latent", "explicit"),
        ("latent ÷ direct, throughput", throughput, "latent", "direct"),
        ("explicit ÷ compared server, throughput", throughput, "explicit", COMPARED),
        (f"latent ÷ explicit, first token of turn {last:g}", turn, "latent", "explicit"),
        (f"auto ÷ explicit, first token of turn {last:g}", turn, "auto", "explicit"),
        (f"explicit ÷ compared server, first token of turn {last:g}", turn, "explicit", COMPARED),
    ]
    return {name: round(of[a] / of[b], 3) for name, of, a, b in wanted if of.get(a) and of.get(b)}


def failures(records: Sequence[Request]) -> str:
    """How many of each kind, with one example in the server's words."""
    answers = [record.answer for record in records if record.answer.error]
    counted = Counter(answer.error for answer in answers)
    examples = {answer.error: answer.detail for answer in reversed(answers)}
    return "; ".join(f"{count} × {error} ({examples[error]})" for error, count in counted.most_common())


def markdown(records: Sequence[Request], note: str) -> str:
    """Throughput, the three times, the ratios, and what failed."""
    figures = summarise(records)
    header = ("load", "mode", "answers", "failed", "requests/s", "tokens/s", "tokens an answer", "answered by")
    parts = [*([note] if note else []), table(header, map(_throughput, figures))]
    for measure in _MEASURES:
        measured = [(f, times) for f in figures if (times := f.milliseconds[measure])]
        rows = ((f.load, f.arm, *(f"{value:.1f}" for value in times.values())) for f, times in measured)
        parts.append(table((f"{measure}, ms", "mode", "mean", *(f"p{q}" for q in _QUANTILES)), rows))
    if found := ratios(figures):
        parts.append(table(("ratio", ""), ((name, f"{value:.2f}") for name, value in found.items())))
    if any(f.errors for f in figures):
        parts.append(f"Failed: {failures(records)}")
    return "\n\n".join(parts)


def _throughput(f: Figures) -> tuple[object, ...]:
    failed = sum(f.errors.values())
    modes = ", ".join(f"{mode} {count / (f.requests - failed):.0%}" for mode, count in f.modes.items())
    per_second = (f"{f.requests_per_second:.2f}", f"{f.tokens_per_second:.1f}", f"{f.tokens:.1f}")
    return (f.load, f.arm, f.requests - failed, failed, *per_second, modes or "–")


def write(
    output: Path, records: Sequence[Request], config: Mapping[str, Any], environment: Mapping[str, Any], note: str,
    problem: str | None,
) -> None:  # fmt: skip
    """`bench.json`, `bench.md`, `requests.jsonl`, and plots: how many answers had come by when, and the price of throughput."""
    figures = summarise(records)
    content = {
        "note": note,
        "problem": problem,
        "config": config,
        "environment": environment,
        "figures": [asdict(f) for f in figures],
        "ratios": ratios(figures),
    }
    (output / "bench.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (output / "bench.md").write_text(markdown(records, note) + "\n")
    (output / "requests.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    loads = dict.fromkeys(f.load for f in figures if f.load.loop != "turn")
    for load, measure in itertools.product(loads, ("time to first token", "end-to-end")):
        came = {f.arm: _distribution(records, f, measure) for f in figures if f.load == load}
        path = output / f"{measure}_{load.file_name}.png".replace(" ", "_")
        _plot(came, path, title=f"{measure.capitalize()}, {load}", x="ms", y="share of answers")
    curves: dict[str, list[tuple[float, float, float]]] = {}
    turns: dict[str, list[tuple[float, float, float]]] = {}
    for f in figures:
        first, whole = (f.milliseconds[name].get("p50") for name in ("time to first token", "end-to-end"))
        if f.load.loop == "turn" and first is not None:
            turns.setdefault(f.arm, []).append((f.load.value, first, 0.0))
        elif f.load.loop != "turn" and whole is not None:
            curves.setdefault(f"{f.arm}, {f.load.loop} loop", []).append((f.requests_per_second, whole, 0.0))
    _plot(curves, output / "throughput.png", title="Time and throughput", x="requests/s", y="end-to-end, p50 ms")
    _plot(turns, output / "turns.png", title="A conversation", x="turn", y="time to first token, p50 ms")


def _plot(series: Mapping[str, Points], path: Path, *, title: str, x: str, y: str) -> None:
    if any(series.values()):
        plot_lines(series, path, title=title, x=x, y=y, log_x=True)


def _distribution(records: Sequence[Request], figures: Figures, measure: str) -> list[tuple[float, float, float]]:
    """(milliseconds, share of answers that had come by then)."""
    answers = [r.answer for r in records if (r.arm, r.load) == (figures.arm, figures.load) and not r.answer.error]
    times = sorted(_milliseconds(answers, _MEASURES[measure]))
    return [(time, rank / len(times), 0.0) for rank, time in enumerate(times, 1)]
