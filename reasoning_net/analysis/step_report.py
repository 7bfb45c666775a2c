"""What `analyse importance` has found, as figures and tables."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasoning_net.analysis.compress import Curve, share_and_error
from reasoning_net.analysis.labels import Labelled
from reasoning_net.analysis.trajectory import mean_and_error
from reasoning_net.plots import plot_lines
from reasoning_net.tables import table

PROBE, SURFACE, RANDOM, LAST = "most important", "position, length, words", "random", "last"
CHOICES = (PROBE, SURFACE, RANDOM, LAST)
"""How the steps to answer from are chosen."""
_IN_PREFIX = ("important", "removable", "unlabelled")


def labels(labelled: Sequence[Labelled]) -> dict[str, Any]:
    """By family: how many chains have labels, and what their steps are."""
    families = sorted({one.family for one in labelled})
    groups = {family: [one for one in labelled if one.family == family] for family in families}
    return {"all": _label_figures(labelled)} | {family: _label_figures(of) for family, of in groups.items()}


def _label_figures(of: Sequence[Labelled]) -> dict[str, Any]:
    chains = [one for one in of if one.labels]
    counts = Counter(label for one in chains for label in one.labels)
    prefix = sum(counts[label] for label in _IN_PREFIX)
    return {
        "chains": len(of),
        "left out": dict(Counter(one.excluded for one in of if one.excluded)),
        "steps a chain": round(statistics.fmean(len(one.steps) for one in of), 1),
        "labelled": len(chains),
        "steps": dict(counts),
        "prefix of chain": round(prefix / counts.total(), 4) if chains else None,
        "core of prefix": round(counts["important"] / prefix, 4) if chains else None,
        "removable": round(counts["removable"] / prefix, 4) if chains else None,
        "important steps a chain": round(counts["important"] / len(chains), 2) if chains else None,
        "important and not the last of the prefix": _earlier(chains),
    }


def _earlier(chains: Sequence[Labelled]) -> float | None:
    """Share of important steps that are not the last one of their prefix: where it is 0, importance is position."""
    earlier = [
        at < max(i for i, label in enumerate(one.labels) if label in _IN_PREFIX)
        for one in chains
        for at, label in enumerate(one.labels)
        if label == "important"
    ]
    return round(statistics.fmean(earlier), 4) if earlier else None


def why_not(labelled: Sequence[Labelled]) -> str:
    reasons = Counter(one.excluded or "labelled" for one in labelled)
    return ", ".join(f"{number} × {reason}" for reason, number in reasons.most_common())


def answers(found: Curve, families: Sequence[str]) -> dict[str, Any]:
    """By choice and share: (right, standard error), of all and by family."""
    groups = {"all": range(len(families))} | {
        family: [at for at, of in enumerate(families) if of == family] for family in sorted(set(families))
    }
    return {
        "chains": {name: len(of) for name, of in groups.items()},
        "right": {
            name: {
                choice: {str(share): share_and_error([right[at] for at in of]) for share, right in by_share.items()}
                for choice, by_share in found.items()
            }
            for name, of in groups.items()
            if of
        },
    }


def plot(figures: Mapping[str, Any], output: Path) -> None:
    lines = {
        choice: [(float(share), *point) for share, point in points.items()]
        for choice, points in figures["right"].get("all", {}).items()
    }
    plot_lines(lines, output, title="Answers from some of a chain's steps", x="share of steps", y="right")


def markdown(figures: Mapping[str, Any]) -> str:
    tables = [_labels_table(figures["labels"]), *map(_probes_table, figures["probes"].items())]
    tables += [_answers_table(name, of, figures["answers"]) for name, of in figures["answers"]["right"].items()]
    return "\n\n".join([*tables, _neglected_table(figures["neglected"])])


def _labels_table(figures: Mapping[str, Any]) -> str:
    header = [
        "chains",
        "labelled",
        "steps a chain",
        "prefix of chain",
        "core of prefix",
        "important steps",
        "not the prefix's last",
    ]
    columns = (
        "chains", "labelled", "steps a chain", "prefix of chain", "core of prefix", "important steps a chain",
        "important and not the last of the prefix",
    )  # fmt: skip
    rows = ((family, *(_said(of[column]) for column in columns), _reasons(of)) for family, of in figures.items())
    return table(["family", *header, "left out"], rows)


def _reasons(of: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} × {reason}" for reason, number in of["left out"].items())


def _probes_table(named: tuple[str, Mapping[str, Any]]) -> str:
    setting, figures = named
    families = sorted({name for runs in figures["by features"].values() for run in runs for name in run} - {"accuracy"})
    ranked = sorted(figures["by features"].items(), key=lambda item: -statistics.fmean(run["accuracy"] for run in item[1]))
    rows = [
        (kind, _over([run["accuracy"] for run in runs]),
         *(_mean([run[family] for run in runs if family in run]) for family in families))
        for kind, runs in ranked
    ]  # fmt: skip
    tested = ", ".join(map(str, figures["steps"])) or "no"
    said = f"{setting[0].upper()}{setting[1:]} (tested on as much as {tested} steps)"
    if figures["agreement"]:
        said += f"; the two bases' probes agree on {statistics.fmean(figures['agreement']):.3f}"
    return f"{said}:\n\n" + table(["features", "accuracy", *families], rows)


def _answers_table(name: str, choices: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    shares = next(iter(choices.values()))
    rows = ((choice, *(f"{mean:.3f} ± {error:.3f}" for mean, error in of.values())) for choice, of in choices.items())
    return table([f"{name} ({figures['chains'][name]} chains)", *(f"{float(share):.0%}" for share in shares)], rows)


def _neglected_table(figures: Mapping[str, Any]) -> str:
    columns = ("chains", "important steps", "neglected", "rank correlation")
    return table(["", *columns], ((name, *(_said(figures[name][c]) for c in columns)) for name in ("right", "wrong")))


def _over(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.3f} ± {error:.3f}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else ""


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
