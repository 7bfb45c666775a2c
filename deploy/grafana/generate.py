"""The dashboards as code: writes one JSON file each into a directory, by default `dashboards` beside this file.

python deploy/grafana/generate.py [DIRECTORY]
"""

import json
import sys
from pathlib import Path
from typing import Any

_RATE = "[$__rate_interval]"
_WHERE = 'instance=~"$instance"'
_MODES = f'{_WHERE}, mode=~"$mode"'
_ENGINE = f'{_WHERE}, model_name=~"$model"'
_WIDTH, _HEIGHT = 12, 8
Panel = dict[str, Any]


def panel(title: str, unit: str, queries: dict[str, str], kind: str = "timeseries", description: str = "") -> Panel:
    """A panel of PromQL expressions by legend. `unit` is Grafana's: s, reqps, percentunit, short."""
    form = "heatmap" if kind == "heatmap" else "time_series"
    targets = [
        {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "format": form}
        for i, (legend, expression) in enumerate(queries.items())
    ]
    made: Panel = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"fillOpacity": 10, "showPoints": "never"}}, "overrides": []},
    }
    if kind == "heatmap":
        made["options"] = {"calculate": False, "yAxis": {"unit": unit}, "color": {"mode": "scheme", "scheme": "Oranges"}}
    return made


def quantiles(title: str, metric: str, where: str, by: str = "mode") -> Panel:
    """p50, p95 and p99 of a histogram of seconds, and the requests that stand for its buckets where it has exemplars."""
    legend = "{{" + by + "}}"
    buckets = rate(f"{metric}_bucket", f"le, {by}", where)
    queries = {f"{legend} p{round(q * 100)}": f"histogram_quantile({q}, {buckets})" for q in (0.5, 0.95, 0.99)}
    made = panel(title, "s", queries)
    made["targets"][-1]["exemplar"] = True  # once: they are the same for every quantile
    return made


def rate(metric: str, by: str, where: str = _WHERE) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}{_RATE}))"


def total(metric: str, where: str = _WHERE) -> str:
    return f"sum(rate({metric}{{{where}}}{_RATE}))"


def ratio(above: str, below: str) -> str:
    """0 where there is nothing to divide by."""
    return f"{above} / clamp_min({below}, 1e-9)"


def share(parts: str, by: str, whole: str) -> str:
    """Of each part, in the whole."""
    return f"{parts} / ignoring({by}) group_left () clamp_min({whole}, 1e-9)"


def overview() -> list[Panel]:
    requests, failures = "latentserve_requests_total", "latentserve_failures_total"
    asked_auto = f'{_WHERE}, requested="auto"'
    return [
        panel("Requests", "reqps", {"{{mode}}": rate(requests, "mode", _MODES)}),
        panel(
            "Requests without an answer", "percentunit",
            {"{{type}}": share(rate(failures, "type"), "type", f"{total(requests)} + {total(failures)}")},
            description="Share of all requests, by what came instead of an answer.",
        ),
        quantiles("Time to first token", "latentserve_time_to_first_token_seconds", _MODES),
        quantiles("Time per output token", "latentserve_time_per_output_token_seconds", _MODES),
        quantiles("Whole request", "latentserve_request_seconds", _MODES),
        panel(
            "Modes that answered auto", "percentunit",
            {"{{mode}}": share(rate(requests, "mode", asked_auto), "mode", total(requests, asked_auto))},
        ),
        panel(
            "Saturation", "short",
            {
                "running": f"sum(latentserve_requests_running{{{_WHERE}}})",
                "waiting": f"sum(latentserve_requests_waiting{{{_WHERE}}})",
                "held": f"sum(latentserve_requests_held{{{_WHERE}}})",
            },
        ),
        panel("Fallbacks", "reqps", {"{{reason}}": rate("latentserve_fallbacks_total", "reason")}),
        panel("Servers that answer", "short", {"{{instance}}": f'up{{job="latentserve", {_WHERE}}}'}, description="1: yes."),
    ]  # fmt: skip


def modes() -> list[Panel]:
    heat = [
        panel(
            f"Whole request, {mode}", "s",
            {"{{le}}": rate("latentserve_request_seconds_bucket", "le", f'{_WHERE}, mode="{mode}"')}, "heatmap",
        )
        for mode in ("direct", "latent", "latent+explicit", "explicit")
    ]  # fmt: skip
    return [
        *heat,
        panel("Seconds by stage", "s", {"{{mode}} {{stage}}": ratio(
            rate("latentserve_stage_seconds_sum", "mode, stage", _MODES),
            rate("latentserve_stage_seconds_count", "mode, stage", _MODES),
        )}, description="Means; the stages of a mode add up to its requests."),
        quantiles("Reasoning network", "latentserve_network_seconds", _MODES),
        quantiles("Probe", "latentserve_probe_seconds", _MODES),
        panel("Tokens a second", "short", {"{{mode}} {{kind}}": rate("latentserve_tokens_total", "mode, kind", _MODES)}),
        panel("Replies without an answer", "reqps", {"{{mode}}": rate("latentserve_unanswered_total", "mode", _MODES)},
              description="They ended inside thinking: --answer-reserve-tokens keeps tokens for the answer."),
        panel("Thinking tokens saved a second", "short", {
            "saved": total("latentserve_thinking_tokens_saved_total"),
            "discarded": total("latentserve_tokens_total", f'{_WHERE}, kind="discarded"'),
        }, description="What auto's cheap answers were expected to cost with a chain, and what doubtful answers cost instead."),
        panel("Generated ÷ prompt tokens, p95 by key", "short", {"{{key}}": (
            f"histogram_quantile(0.95, {rate('latentserve_amplification_bucket', 'le, key')})"
        )}),
    ]  # fmt: skip


def router() -> list[Panel]:
    return [
        panel("Score that decided", "short", {
            "{{le}}": rate("latentserve_router_score_bucket", "le", _MODES)
        }, "heatmap"),
        panel("Reasons", "reqps", {"{{mode}}: {{reason}}": (
            rate("latentserve_requests_total", "mode, reason", f'{_MODES}, requested="auto"')
        )}),
        panel("Checked answers", "reqps", {"{{outcome}}": rate("latentserve_checked_answers_total", "outcome")}),
        panel("Drift of the scores (PSI)", "short", {
            "{{instance}}": f"latentserve_router_drift_psi{{{_WHERE}}}", "all of {{job}}": "latentserve:router_drift_psi",
        }, description="Below 0.1: as calibrated. Above 0.25: fit the probe anew. Empty until there are a hundred: a replica's "
                       "last thousand scores, and those of all replicas within an hour."),
        panel("Calibration, live", "percentunit", {
            "expected: mean score": ratio(
                total("latentserve_router_score_sum", _MODES), total("latentserve_router_score_count", _MODES),
            ),
            "seen: shadows that agree": ratio(
                total("latentserve_shadows_total", f'{_MODES}, outcome="agrees"'),
                total("latentserve_shadows_total", f'{_MODES}, outcome=~"agrees|differs"'),
            ),
        }, description="Two modes agree about as often as both are right, so the lines should be close."),
        panel("Shadows", "reqps", {"{{mode}} / {{shadow}}: {{outcome}}": (
            rate("latentserve_shadows_total", "mode, shadow, outcome", _MODES)
        )}, description="Answers compared with another mode's, where LATENTSERVE_SHADOW_SHARE is set."),
        panel("Estimated regret", "percentunit", {"{{mode}}": ratio(
            rate("latentserve_shadow_regret_total", "mode", _MODES),
            rate("latentserve_shadows_total", "mode", f'{_MODES}, outcome=~"agrees|differs"'),
        )}, description="Accuracy that the other mode would have brought, per compared answer."),
    ]  # fmt: skip


def engine() -> list[Panel]:
    return [
        panel("Requests in the engine", "short", {
            "{{instance}} running": f"vllm:num_requests_running{{{_ENGINE}}}",
            "{{instance}} waiting": f"vllm:num_requests_waiting{{{_ENGINE}}}",
        }),
        panel("KV cache", "percentunit", {"{{instance}}": f"vllm:kv_cache_usage_perc{{{_ENGINE}}}"}),
        panel("Preemptions", "short", {"{{instance}}": rate("vllm:num_preemptions_total", "instance", _ENGINE)}),
        panel("Tokens a second", "short", {
            "prompt": total("vllm:prompt_tokens_total", _ENGINE),
            "generated": total("vllm:generation_tokens_total", _ENGINE),
        }),
        panel("Prefix cache hits", "percentunit", {"hits": ratio(
            total("vllm:prefix_cache_hits_total", _ENGINE),
            total("vllm:prefix_cache_queries_total", _ENGINE),
        )}),
        quantiles("Waiting in the engine", "vllm:request_queue_time_seconds", _ENGINE, by="instance"),
        quantiles("Prefill", "vllm:request_prefill_time_seconds", _ENGINE, by="instance"),
        quantiles("Decode", "vllm:request_decode_time_seconds", _ENGINE, by="instance"),
    ]  # fmt: skip


def replicas() -> list[Panel]:
    """Every line is one server's; the other dashboards add up those that are chosen."""
    one = "{{instance}}"
    first = rate("latentserve_time_to_first_token_seconds_bucket", "le, instance", _MODES)
    failures = rate("latentserve_failures_total", "instance")
    return [
        panel("Requests", "reqps", {one: rate("latentserve_requests_total", "instance", _MODES)}),
        panel("Requests without an answer", "reqps", {one: failures}),
        panel("Time to first token, p95", "s", {one: f"histogram_quantile(0.95, {first})"}),
        panel("Work that is left", "s", {one: f"latentserve_expected_seconds_outstanding{{{_WHERE}}}"},
              description="Expected seconds of the engine for all admitted answers, at its present pace."),
        panel("Answers", "short", {
            f"{one} running": f"latentserve_requests_running{{{_WHERE}}}",
            f"{one} waiting": f"latentserve_requests_waiting{{{_WHERE}}}",
        }),
        panel("KV cache", "percentunit", {one: f"vllm:kv_cache_usage_perc{{{_ENGINE}}}"}),
        panel("Tokens a second", "short", {one: rate("vllm:generation_tokens_total", "instance", _ENGINE)}),
        panel("Routers by version", "short", {"{{policy}} {{version}}": (
            f"count by (policy, version) (latentserve_router_info{{{_WHERE}}})"
        )}, description="More than one line: replicas decide differently."),
    ]  # fmt: skip


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "type": "query", "query": query, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"}, "datasource": {"type": "prometheus", "uid": "prometheus"},
    }  # fmt: skip


def dashboard(title: str, panels: list[Panel]) -> dict[str, Any]:
    placed = [
        one | {"id": i + 1, "gridPos": {"x": i % 2 * _WIDTH, "y": i // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}}
        for i, one in enumerate(panels)
    ]
    return {
        "uid": f"latentserve-{title.lower()}",
        "title": f"latentserve: {title}",
        "tags": ["latentserve"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [
            variable("instance", "label_values(latentserve_requests_total, instance)"),
            variable("model", "label_values(vllm:num_requests_running, model_name)"),
            variable("mode", "label_values(latentserve_requests_total, mode)"),
        ]},
        "links": [{"type": "dashboards", "tags": ["latentserve"], "title": "", "asDropdown": False}],
        "panels": placed,
    }  # fmt: skip


def _boards() -> list[tuple[str, list[Panel]]]:
    return [
        ("Overview", overview()), ("Modes", modes()), ("Router", router()), ("Engine", engine()), ("Replicas", replicas()),
    ]  # fmt: skip


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for title, panels in _boards():
        (directory / f"{title.lower()}.json").write_text(json.dumps(dashboard(title, panels), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
