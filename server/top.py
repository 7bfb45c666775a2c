"""`latentserve top`: what a server is doing, by mode, from its own /metrics."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from router.policy import Mode

MODES = (Mode.DIRECT, Mode.LATENT, Mode.LATENT_EXPLICIT, Mode.EXPLICIT)


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one look at /metrics: (name, labels) → value."""

    at: float
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(repr=False)

    @classmethod
    def of(cls, text: str) -> "Scrape":
        values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return cls(time.monotonic(), values)

    def total(self, name: str, **labels: str) -> float:
        return sum(value for (found, have), value in self.values.items() if found == name and labels.items() <= have)


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two scrapes."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        return self.after.at - self.before.at

    def grown(self, name: str, **labels: str) -> float:
        # A counter that fell belongs to a server that was started anew.
        return max(0.0, self.after.total(name, **labels) - self.before.total(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        return self.grown(name, **labels) / self.seconds

    def quantile(self, q: float, name: str, **labels: str) -> float:
        """Of a histogram, as Prometheus' histogram_quantile; NaN when nothing was observed."""
        bounds = {dict(have)["le"] for found, have in self.after.values if found == f"{name}_bucket"}
        counts = sorted((float(le), self.grown(f"{name}_bucket", le=le, **labels)) for le in bounds)
        wanted = q * counts[-1][1] if counts else 0.0
        if wanted <= 0:
            return math.nan
        lower, below = 0.0, 0.0
        for bound, count in counts:
            if count >= wanted:
                return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return lower


def watch(url: str, interval_seconds: float, window_seconds: float, api_key: str | None = None) -> Iterator[Group]:
    """A view every interval, of the last window. Raises httpx's errors when the server does not answer any more."""
    scrapes: deque[Scrape] = deque()
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        while True:
            scrapes.append(Scrape.of(client.get("/metrics").raise_for_status().text))
            while len(scrapes) > 2 and scrapes[1].at <= scrapes[-1].at - window_seconds:
                scrapes.popleft()
            if len(scrapes) > 1:
                yield view(url, Window(scrapes[0], scrapes[-1]))
            time.sleep(interval_seconds)


def view(url: str, window: Window) -> Group:
    """The table of modes, and what the engine and the router are doing."""
    # A mode that nothing was answered in since the server started takes no room.
    seen = [mode for mode in MODES if window.after.total("latentserve_requests_total", mode=mode)]
    table = Table(
        title=f"{url}, the last {window.seconds:.0f} s", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("mode", no_wrap=True)
    for title in ("asked\n/s", "of\nauto", "TTFT\np50", "\np95", "TPOT\np50", "request\np50", "\np95", "tokens\n/s"):
        table.add_column(title, justify="right", no_wrap=True)
    auto = window.grown("latentserve_requests_total", requested="auto")
    for mode in seen or MODES:
        share = window.grown("latentserve_requests_total", requested="auto", mode=mode) / auto if auto else math.nan
        table.add_row(
            mode,
            f"{window.rate('latentserve_requests_total', mode=mode):.1f}",
            "" if math.isnan(share) else f"{share:.0%}",
            *(_time(window.quantile(q, "latentserve_time_to_first_token_seconds", mode=mode)) for q in (0.5, 0.95)),
            _time(window.quantile(0.5, "latentserve_time_per_output_token_seconds", mode=mode)),
            *(_time(window.quantile(q, "latentserve_request_seconds", mode=mode)) for q in (0.5, 0.95)),
            f"{_generated(window, mode):.0f}",
        )
    after = window.after
    running, waiting = after.total("latentserve_requests_running"), after.total("latentserve_requests_waiting")
    lines = [
        f"answers: {running:.0f} running, {waiting:.0f} waiting, KV cache {after.total('vllm:kv_cache_usage_perc'):.0%}",
        f"router: {window.grown('latentserve_thinking_tokens_saved_total'):.0f} thinking tokens saved, "
        f"{window.grown('latentserve_checked_answers_total', outcome='escalated'):.0f} of "
        f"{window.grown('latentserve_checked_answers_total'):.0f} checked answers thought through again",
    ]
    failures, fallbacks = window.grown("latentserve_failures_total"), window.grown("latentserve_fallbacks_total")
    style = "bold red" if failures or fallbacks else "dim"
    return Group(table, *map(Text, lines), Text(f"{failures:.0f} requests failed, {fallbacks:.0f} fell back", style))


def _generated(window: Window, mode: Mode) -> float:
    kinds = ("thinking", "answer", "discarded")
    return sum(window.rate("latentserve_tokens_total", kind=kind, mode=mode) for kind in kinds)


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
