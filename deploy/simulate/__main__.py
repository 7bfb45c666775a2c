"""`python -m deploy.simulate --output runs/growth`."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import simpy
from cyclopts import App, Parameter

from deploy.simulate.load import PROBE_ERROR, Load
from deploy.simulate.replica import Request, work_seconds
from deploy.simulate.routing import ERRORS, POLICIES, Scraped
from deploy.simulate.scaling import Fleet
from reasoning_net.options import Flat, commas
from reasoning_net.plots import plot_lines

_LATE_SECONDS = 2.0  # a first token that a user has waited for
_DRAIN_SECONDS = 120.0
_GAUGES = {
    "requests in flight": (lambda one: float(one.requests), (12, 24, 48, 64)),
    "expected tokens": (lambda one: one.owed, (200, 400, 800, 1600)),
    "expected seconds": (lambda one: one.seconds, (1, 2, 4, 8)),
}
_MOST_REPLICAS = 24
_DRAWN = ("round robin", "least requests", "session", "seconds", "seconds, 5 s old", "of two, 5 s old")


@dataclass(frozen=True)
class Config:
    output: Annotated[Path, Parameter(help="Directory of tables and plots.")]
    replicas: Annotated[tuple[int, ...], commas(int)] = (2, 8, 32)
    explicit: Annotated[float, Parameter(help="Share of requests that think in text; the others are latent.")] = 0.3
    load: Annotated[float, Parameter(help="Share of what the replicas could do at full batches.")] = 0.8
    turns: Annotated[tuple[float, ...], commas(float), Parameter(help="Of a session, on average.")] = (1.0, 5.0)
    minutes: Annotated[float, Parameter(help="That requests come.")] = 10.0
    seed: int = 0
    processes: Annotated[int, Parameter(help="At once.")] = 2


def figures(requests: list[Request]) -> dict[str, float]:
    """Of those who came after the first tenth."""
    counted = requests[len(requests) // 10 :]
    firsts = np.array([one.first - one.arrived for one in counted])
    answered = firsts[np.isfinite(firsts)]
    whole = {
        mode: np.percentile([one.ended - one.arrived for one in counted if one.mode == mode and one.place >= 0] or [0], 95)
        for mode in ("latent", "explicit")
    }
    return {
        "first p50": float(np.percentile(answered, 50)),
        "first p95": float(np.percentile(answered, 95)),
        "latent p95": float(whole["latent"]),
        "explicit p95": float(whole["explicit"]),
        "late": float(np.mean(firsts > _LATE_SECONDS)),
        "lost": float(np.mean([one.place < 0 for one in counted])),
    }


def route(policy: str, replicas: int, turns: float, config: Config) -> dict[str, Any]:
    env = simpy.Environment()
    mean = config.explicit * work_seconds("explicit") + (1 - config.explicit) * work_seconds("latent")
    load = Load(
        rate=lambda _: config.load * replicas / mean, explicit=lambda _: config.explicit,
        seconds=config.minutes * 60, turns=turns, error_tokens=ERRORS.get(policy, PROBE_ERROR),
        seed=config.seed,
    )  # fmt: skip
    fleet = Fleet(env, POLICIES[policy](env), replicas)
    env.process(load.send(env, fleet.take))
    env.run(load.seconds + _DRAIN_SECONDS)
    return {"policy": policy, "replicas": replicas, "turns": turns} | figures(fleet.requests)


def scale(gauge: str, target: float, config: Config) -> dict[str, Any]:
    """Fifty minutes: ten each of rest, of chains instead of latents, of rest, of many latents, of rest."""
    env = simpy.Environment()
    load = Load(
        rate=lambda now: 120.0 if 1800 <= now < 2400 else 30.0,
        explicit=lambda now: 0.7 if 600 <= now < 1200 else 0.1 if now < 1800 or now >= 2400 else 0.0,
        seconds=3000, seed=config.seed,
    )  # fmt: skip
    fleet = Fleet(env, Scraped(env, 0, "requests"), 4)
    env.process(load.send(env, fleet.take))
    env.process(fleet.scale(_GAUGES[gauge][0], target, 2, _MOST_REPLICAS, load.seconds))
    env.run(load.seconds + _DRAIN_SECONDS)
    return {"gauge": gauge, "target": target, "replica hours": fleet.replica_seconds / 3600, "most": fleet.most} | figures(
        fleet.requests
    )


def table(rows: list[dict[str, Any]]) -> str:
    def cell(name: str, value: Any) -> str:
        if name in ("late", "lost"):
            return f"{value:.1%}"
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cell(*pair) for pair in row.items()) + " |" for row in rows)]) + "\n"


def main(config: Annotated[Config, Flat]) -> None:
    """Seconds everywhere; `late`: no first token within two; `lost`, and so late: refused, the picked replica was full."""
    config.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(config.processes) as pool:
        routes = [(policy, n, turns, config) for turns in config.turns for n in config.replicas for policy in POLICIES]
        scales = [(gauge, target, config) for gauge, (_, targets) in _GAUGES.items() for target in targets]
        scaled_later, routed_later = pool.map(scale, *zip(*scales, strict=True)), pool.map(route, *zip(*routes, strict=True))
        routed, scaled = list(routed_later), list(scaled_later)
    (config.output / "growth.json").write_text(json.dumps({"routing": routed, "scaling": scaled}, indent=1) + "\n")
    (config.output / "growth.md").write_text(table(routed) + "\n" + table(scaled))
    print(table(routed), table(scaled), sep="\n")
    for turns in config.turns:
        of = {policy: [row for row in routed if (row["policy"], row["turns"]) == (policy, turns)] for policy in _DRAWN}
        series = {policy: [(row["replicas"], row["first p95"], 0.0) for row in rows] for policy, rows in of.items()}
        title, output = f"Load {config.load:g}, {turns:g} turns a session", config.output / f"routing-{turns:g}.png"
        plot_lines(series, output, title=title, x="replicas", y="p95 to first token, s", log_x=True)
    frontier = {name: sorted((r["replica hours"], r["late"], 0.0) for r in scaled if r["gauge"] == name) for name in _GAUGES}
    plot_lines(frontier, config.output / "scaling.png", title="Autoscaling by", x="replica hours", y="late or lost")


if __name__ == "__main__":
    App(default_command=main, help=__doc__)()
