"""A server whose router comes from a file that changes."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import Question
from tests.conftest import OPERATOR_KEY, running_server
from tests.e2e.test_modes import metric


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("router") / "router.json", {"policy": "always-direct", "version": "r1"})


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSERVE_OPERATOR_KEY", OPERATOR_KEY)
        flags = ("--router-file", str(file), "--router-file-seconds", "0.2")
        with running_server(tmp_path_factory.mktemp("watching") / "log.txt", *flags) as url:
            yield url


def put(file: Path, document: Any) -> Path:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    os.replace(new, file)
    return file


def until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def test_the_file_decides_and_says_so_everywhere(watching: str, file: Path, asked: list[Question]) -> None:
    def shown() -> dict[str, Any]:
        return httpx.get(f"{watching}/v1/router").json()

    def route() -> dict[str, Any]:
        body = {"model": "demo", "mode": "auto", "messages": [{"role": "user", "content": asked[0].question}]}
        return httpx.post(f"{watching}/v1/chat/completions", json=body, timeout=60).json()["route"]

    assert (shown()["version"], shown()["file"]) == ("r1", {"name": str(file), "in_force": True})
    assert (route()["mode"], route()["policy"], route()["router_version"]) == ("direct", "always-direct", "r1")
    operator = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    refused = httpx.put(f"{watching}/v1/router", json={"policy": "utility"}, headers=operator)
    assert refused.status_code == 409
    assert str(file) in refused.json()["error"]["message"]
    assert httpx.put(f"{watching}/v1/router", json={"policy": "utility"}).status_code == 403
    put(file, {"policy": "always-latent", "version": "r2"})
    assert until(lambda: shown()["version"] == "r2")
    assert (route()["mode"], route()["router_version"]) == ("latent", "r2")
    put(file, {"policy": "clever"})
    assert until(lambda: metric(watching, "latentserve_router_file_in_force") == 0)
    assert metric(watching, "latentserve_router_file_failures_total", reason="refused") == 1
    assert metric(watching, "latentserve_router_info", version="r2", policy="always-latent") == 1
    assert (shown()["version"], shown()["file"]["in_force"], route()["mode"]) == ("r2", False, "latent")
    put(file, {"explicit_share": 0.3})
    assert until(lambda: shown()["policy"] == "utility")
    assert metric(watching, "latentserve_router_file_in_force") == 1
    assert metric(watching, "latentserve_router_info", version=shown()["version"]) == 1
