"""Every query of every panel and alert, on a real Prometheus that scrapes the live server under traffic, and what goes wrong:
`make dashboards`. It waits for the intervals that we ship."""

import contextlib
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from safetensors.torch import load_file, save_file

from reasoning_net.demo.questions import Question
from server.settings import DEMO_BUNDLE
from tests.conftest import free_port, running_server
from tests.deploy.test_dashboards import DASHBOARDS, DEPLOY, RULES, needs_prometheus


def queries() -> Iterator[tuple[str, str]]:
    """(where, expression) of all panels and alerts; alerts without the threshold that keeps them silent."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        expression, _, threshold = rule["expr"].split(" and ")[0].rpartition(" == " if "== 0" in rule["expr"] else " > ")
        assert float(threshold) >= 0
        yield f"alert: {rule['alert']}", expression


@contextlib.contextmanager
def prometheus(target: str, directory: Path, **settings: str) -> Iterator[str]:
    """A Prometheus with our configuration, but for these global settings, that scrapes the target; its URL."""
    directory.mkdir()
    shutil.copy(RULES, directory / "alerts.yml")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= settings
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    command += [f"--web.listen-address={url.removeprefix('http://')}", "--enable-feature=exemplar-storage"]
    with (directory / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(30)


def until(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if holds():
                return True
        time.sleep(0.5)
    return False


def values(url: str, expression: str) -> list[float]:
    """What the expression gives now, with the dashboards' variables at All."""
    expression = re.sub(r"\$(instance|model|mode)", ".*", expression).replace("$__rate_interval", "2m")
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30).json()
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]


def traffic(url: str, asked: list[Question]) -> None:
    """Every mode, streamed and not, with failures and questions enough for the drift."""

    def post(path: str, question: Question, **fields: Any) -> int:
        body = {"model": "demo", "messages": [{"role": "user", "content": question.question}]} | fields
        return httpx.post(f"{url}{path}", json=body, timeout=180).status_code

    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(post, "/v1/route", question) for question in asked[:40] * 3]
        for question, mode, stream in product(
            asked[:3], ("direct", "latent", "latent+explicit", "explicit", "auto"), (False, True)
        ):
            sent.append(pool.submit(post, "/v1/chat/completions", question, mode=mode, stream=stream))
    assert {one.result() for one in sent} == {200}
    assert httpx.post(f"{url}/v1/chat/completions", json={"model": "demo", "mode": "often"}, timeout=60).status_code == 400
    time.sleep(3)  # idle: shadows are compared


@pytest.mark.timeout(600)  # traffic in every mode, twice, and a wait for rates
@needs_prometheus
def test_every_query_returns_data(tmp_path: Path, asked: list[Question], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSERVE_SHADOW_SHARE", "1")
    with (
        running_server(tmp_path / "log.txt") as target,
        prometheus(target, tmp_path / "prometheus", scrape_interval="1s", evaluation_interval="1s") as url,
    ):
        assert until(30, lambda: httpx.get(f"{url}/-/ready").is_success and bool(values(url, "up")))
        for _ in range(2):  # a rate needs a change
            traffic(target, asked)

        def empty() -> list[str]:
            return [where for where, expression in queries() if not any(map(math.isfinite, values(url, expression)))]

        until(15, lambda: not empty())
        assert empty() == []
        assert len(list(queries())) > 50
        window = {"query": "latentserve_request_seconds_bucket", "start": str(time.time() - 60), "end": str(time.time())}
        kept = httpx.get(f"{url}/api/v1/query_exemplars", params=window, timeout=30).json()["data"]
        assert all(one["labels"]["request_id"].startswith("chatcmpl-") for series in kept for one in series["exemplars"])
        assert kept
        health = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in health} == {"ok"}


def overview(url: str, title: str, legend: str) -> list[float]:
    """What a line of a panel of the Overview shows."""
    panels = json.loads((DASHBOARDS / "overview.json").read_text())["panels"]
    (panel,) = (panel for panel in panels if panel["title"] == title)
    (target,) = (target for target in panel["targets"] if target["legendFormat"] == legend)
    return values(url, target["expr"])


def firing(url: str) -> set[str]:
    alerts = httpx.get(f"{url}/api/v1/alerts").json()["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@pytest.fixture
def broken_bundle(tmp_path: Path) -> Path:
    """Its network computes nothing but NaN."""
    directory = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, directory)
    weights = load_file(directory / "reasoning_net.safetensors")
    save_file(weights | {"scale": weights["scale"] * math.nan}, directory / "reasoning_net.safetensors")
    return directory


def send(target: str, question: Question, mode: str, max_tokens: int, n: int = 1) -> None:
    body = {"model": "demo", "mode": mode, "n": n, "messages": [{"role": "user", "content": question.question}]}
    with contextlib.suppress(httpx.TransportError):  # the server will be killed
        httpx.post(f"{target}/v1/chat/completions", json=body | {"max_tokens": max_tokens, "ignore_eos": True}, timeout=300)


def flood(pool: ThreadPoolExecutor, target: str, question: Question, seconds: float) -> None:
    """More than two sequences at a time can answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pool.submit(send, target, question, "explicit", 1000)
        pool.submit(send, target, question, "latent", 1000, 2)  # read before it is answered: these wait for latents
        time.sleep(0.2)


@pytest.mark.timeout(600)  # alerts wait for their intervals, and there are three
@needs_prometheus
def test_what_goes_wrong_shows_on_the_overview_and_fires_an_alert(
    tmp_path: Path, broken_bundle: Path, asked: list[Question]
) -> None:
    """With the intervals that we ship: latents that are not finite, a queue that grows, a server that was killed."""
    flags = ("--bundle", str(broken_bundle), "--max-num-seqs", "2", "--max-num-queued-reqs", "1000", "--long-slots", "1000")
    with (
        ThreadPoolExecutor(400) as pool,
        running_server(tmp_path / "log.txt", *flags, when="/health") as target,
        prometheus(target, tmp_path / "prometheus") as url,
    ):
        assert until(30, lambda: httpx.get(f"{url}/-/ready").is_success)
        assert until(30, lambda: overview(url, "Servers that answer", "{{instance}}") == [1])
        assert httpx.get(f"{target}/ready").status_code == 503
        asking = pool.submit(lambda: [(send(target, asked[0], "latent", 1), time.sleep(0.5)) for _ in range(100)])
        assert until(15, lambda: max(overview(url, "Fallbacks", "{{reason}}"), default=0) > 0)
        assert until(60, lambda: "Fallbacks" in firing(url))
        flooding = pool.submit(flood, pool, target, asked[0], 60)
        assert until(15, lambda: max(overview(url, "Saturation", "waiting"), default=0) > 0)
        assert until(15, lambda: max(overview(url, "Saturation", "held"), default=0) > 0)
        assert until(60, lambda: "QueueGrows" in firing(url))
        for process in psutil.process_iter(["cmdline"]):
            if str(broken_bundle) in (process.info["cmdline"] or ()):
                process.kill()
        assert until(15, lambda: overview(url, "Servers that answer", "{{instance}}") == [0])
        assert until(60, lambda: "EngineDown" in firing(url))
        flooding.result()
        asking.result()
