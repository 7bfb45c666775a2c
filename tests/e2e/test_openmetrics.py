"""`/metrics` as a scraper sees it."""

from collections import Counter
from itertools import product
from typing import Any

import httpx
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from reasoning_net.demo.questions import Question


def families(server: str) -> dict[str, Metric]:
    response = httpx.get(f"{server}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}, timeout=30)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def post(server: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{server}/v1/chat/completions", json={"model": "demo"} | body, headers=headers, timeout=60)


def test_latencies_have_exemplars_and_vllms_series_are_there(server: str, asked: list[Question]) -> None:
    messages = [{"role": "user", "content": asked[20].question}]
    ids = {stream: f"exemplar-{stream}" for stream in (False, True)}
    for stream, request_id in ids.items():
        answer = post(server, {"mode": "latent", "messages": messages, "stream": stream}, **{"X-Request-Id": request_id})
        assert f'"id":"chatcmpl-{request_id}"' in answer.text

    def exemplars(name: str) -> dict[str, Sample]:
        return {s.exemplar.labels["request_id"]: s for s in families(server)[name].samples if s.exemplar}

    for name, streams in (("latentserve_request_seconds", (False, True)), ("latentserve_time_to_first_token_seconds", (True,))):
        found = exemplars(name)
        assert any(f"chatcmpl-{ids[stream]}" in found for stream in streams)
        assert all(s.exemplar.value <= float(s.labels["le"]) and s.labels["mode"] for s in found.values())
    assert {"vllm:e2e_request_latency_seconds", "vllm:generation_tokens", "latentserve_requests"} <= families(server).keys()
    plain = httpx.get(f"{server}/metrics", timeout=30)
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert "vllm:num_requests_running" in plain.text


def test_what_clients_write_adds_no_series(server: str, asked: list[Question]) -> None:
    messages = [{"role": "user", "content": asked[21].question}]

    def strange(i: int) -> None:
        """Every place where a client may write what it likes, and what it likes."""
        word = f"strange-{i}"
        for body in (
            {"mode": word}, {"model": word}, {"model": f"demo:{word}"}, {"reasoning_effort": word},
            {"mode": "auto", "router": {"policy": word}}, {"mode": "auto", "router": {word: 1}},
            {"mode": "latent", "user": word, "request_id": word}, {"mode": "latent", "num_latent_tokens": 1000 + i},
            {"mode": "direct", "stream": True, "max_tokens": 4 + i},
        ):  # fmt: skip
            post(server, {"messages": messages, "max_tokens": 4} | body)
        post(server, {"messages": messages}, **{"X-Reasoning-Mode": word, "X-Request-Id": word})
        for method, path in product(("GET", "POST"), (f"/v1/{word}", f"/{word}", f"/metrics/{word}")):
            httpx.request(method, server + path, timeout=30)

    def series() -> Counter[str]:
        return Counter(s.name for family in families(server).values() for s in family.samples)

    strange(0)
    before = series()
    for i in (1, 2):
        strange(i)
    assert series() == before
