"""Markdown tables: how stages and benches say what they have measured."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])
