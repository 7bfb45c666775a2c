"""Plots as PNG, beside the figures that they show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DENSE = 30  # points that a line needs no markers for
Points = Sequence[tuple[float, float, float]]
"""(x, y, standard error of y)."""


def plot_curves(records: Sequence[Mapping[str, Any]], title: str, output: Path) -> None:
    """Every figure of a training log against its step."""
    names = [name for name in dict.fromkeys(name for record in records for name in record) if name not in ("step", "seconds")]
    if not names:
        return
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True))
        axes.set(title=f"{title}: {name}", xlabel="step")
        axes.grid(alpha=0.3)
    _write(figure, output)


def plot_lines(series: Mapping[str, Points], output: Path, *, title: str, x: str, y: str, log_x: bool = False) -> None:
    """Named lines with error bars."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        if points:
            xs, ys, errors = zip(*points, strict=True)
            marker = "" if len(points) > _DENSE else "o"
            axes.errorbar(xs, ys, yerr=errors if any(errors) else None, label=name, marker=marker, capsize=3)
    if log_x:
        axes.set_xscale("log")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()
    _write(figure, output)


def _write(figure: Figure, output: Path) -> None:
    FigureCanvasAgg(figure)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
