"""What can be known before anything is started; `make balancers` starts it."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.cluster import ClusterError, check_free, router_command
from tests.conftest import free_port


def test_a_port_that_is_taken_is_named_before_anything_is_started() -> None:
    check_free("127.0.0.1", [free_port()])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} on 127.0.0.1 cannot be had"):
            check_free("127.0.0.1", [port])


def test_a_router_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.cluster", "--port", str(free_port()), "--router", "haproxy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "vllm-router" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_envoy_gets_as_many_servers_as_there_are(tmp_path: Path) -> None:
    command = router_command("envoy", 9000, ["127.0.0.1:9001", "10.0.0.2:9002", "10.0.0.3:9003"], tmp_path, 0)
    config = yaml.safe_load(Path(command[2]).read_text())["static_resources"]
    (listener,), (cluster,) = config["listeners"], config["clusters"]
    assert listener["address"]["socket_address"]["port_value"] == 9000
    ((group),) = cluster["load_assignment"]["endpoints"]
    servers = [entry["endpoint"]["address"]["socket_address"] for entry in group["lb_endpoints"]]
    assert [(server["address"], server["port_value"]) for server in servers] == [
        ("127.0.0.1", 9001), ("10.0.0.2", 9002), ("10.0.0.3", 9003),
    ]  # fmt: skip
    assert cluster["lb_policy"] == "RING_HASH"
