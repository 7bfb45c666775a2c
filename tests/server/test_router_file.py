"""The document that all replicas watch: in a file, and behind a real HTTP server."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reasoning_net.bundle import Bundle
from router.router import Router
from server.engine.errors import ConfigurationError
from server.router_file import RouterFile, public_name


@pytest.fixture
def router(bundle: Bundle) -> Router:
    return Router(bundle.manifest.calibration)


def replace(path: Path, content: Any) -> None:
    """As whoever deploys it should: all at once."""
    new = path.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else json.dumps(content))
    os.replace(new, path)


async def test_what_is_changed_comes_into_force_and_what_is_wrong_does_not(
    router: Router, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, failures = tmp_path / "router.json", list[str]()
    replace(path, {"policy": "always-direct", "version": 7})
    file = RouterFile(str(path), router, failures.append)
    await file.load()
    assert (router.policy.name, router.version, file.is_in_force) == ("always-direct", "7", True)
    replace(path, {"explicit_share": 0.5})
    await file.refresh()
    assert router.policy.name == "utility"
    assert router.point is not None
    assert router.point.explicit_share == pytest.approx(0.5, abs=0.01)
    before, version = router.policy, router.version
    for bad in (
        "{", "[]", {}, {"policy": "clever"}, {"explicit_share": 0.1, "mean_tokens": 5}, {"accuracy_floor": 0.99999},
        {"policy": "utility", "version": "a b"}, {"policy": "utility", "version": True}, {"policy": "utility", "max_cost": 5},
        {"policy": "utility", "verison": 2}, '{"policy": "utility", "version": "' + "x" * 2**17 + '"}',
    ):  # fmt: skip
        failures.clear()
        replace(path, bad)
        for _ in range(3):
            await file.refresh()
        assert (failures, file.is_in_force) == (["refused"], False), bad
        assert (router.policy, router.version) == (before, version)
    assert f"{path} is refused" in caplog.text
    failures.clear()
    path.unlink()
    for _ in range(3):
        await file.refresh()
    assert failures == ["unreachable"] * 3
    assert (router.policy, file.is_in_force) == (before, False)
    replace(path, {"policy": "diffadapt"})
    await file.refresh()
    assert (router.policy.name, file.is_in_force) == ("diffadapt", True)


def test_replicas_that_decide_alike_have_the_same_version_and_others_another(bundle: Bundle) -> None:
    calibration = bundle.manifest.calibration
    one, other = Router(calibration), Router(calibration)
    assert one.version == other.version
    assert len({one.version, Router(None).version, Router(calibration, policy="diffadapt").version}) == 3


@pytest.mark.parametrize(
    ("content", "says"), [("{", "not JSON"), ('{"policy": "clever"}', "Policies are"), (None, "No such file")]
)
async def test_a_bad_file_ends_the_start(router: Router, tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "router.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=says):
        await RouterFile(str(path), router).load()


class Served(BaseHTTPRequestHandler):
    status, document, etag = 200, b"", ""
    answered: list[int]

    def do_GET(self) -> None:
        kind = type(self)
        status = 304 if kind.etag and self.headers["If-None-Match"] == kind.etag else kind.status
        kind.answered.append(status)
        self.send_response(status)
        if kind.etag:
            self.send_header("ETag", kind.etag)
        content = kind.document if status == 200 else b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[tuple[str, type[Served]]]:
    kind = type("Handler", (Served,), {"answered": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/router.json?token=secret", kind
    server.shutdown()
    server.server_close()


async def test_a_url_is_asked_for_what_is_new(
    router: Router, served: tuple[str, type[Served]], caplog: pytest.LogCaptureFixture
) -> None:
    url, kind = served
    kind.document, kind.etag = b'{"policy": "always-direct"}', '"1"'
    failures = list[str]()
    file = RouterFile(url, router, failures.append)
    await file.load()
    await file.refresh()
    assert kind.answered == [200, 304]
    kind.document, kind.etag = b'{"policy": "diffadapt", "version": "v2"}', '"2"'
    await file.refresh()
    assert (router.policy.name, router.version) == ("diffadapt", "v2")
    kind.document, kind.etag = b'{"policy": "clever"}', '"3"'
    await file.refresh()
    await file.refresh()
    assert (failures, file.is_in_force, kind.answered[-1]) == (["refused"], False, 304)
    kind.status, kind.etag = 500, ""
    await file.refresh()
    assert (failures[1:], router.version) == (["unreachable"], "v2")
    kind.status, kind.document = 200, b'{"policy": "utility"}'
    await file.refresh()
    assert (router.policy.name, file.is_in_force) == ("utility", True)
    assert "secret" not in caplog.text + file.name


async def test_a_server_that_is_away_changes_nothing(router: Router) -> None:
    failures = list[str]()
    before, file = router.policy, RouterFile("http://127.0.0.1:9/router.json", router, failures.append)
    await file.refresh()
    assert (failures, router.policy) == (["unreachable"], before)
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9/router\.json cannot be used"):
        await RouterFile("http://127.0.0.1:9/router.json", router).load()


def test_names_hold_no_secrets() -> None:
    assert public_name("https://u:p@host:1/a.json?sig=x#y") == "https://host:1/a.json"
    assert public_name("/etc/router.json") == "/etc/router.json"
