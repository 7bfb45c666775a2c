"""A cluster of two of Ray's nodes on this machine, each with room for one replica, and `ray.yaml` on it."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.conftest import free_port

# A machine that is busy with two engines: Serve's own patience is shorter.
PATIENCE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # What replicas and proxies count is known within a second instead of ten.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
RUN, WAIT = 4, 28
START_SECONDS = 600
QUICK = {"max_replicas": 2, "look_back_period_s": 3, "metrics_interval_s": 1, "upscale_delay_s": 3, "downscale_delay_s": 6}


def by_expected_work(target_seconds: float) -> dict[str, Any]:
    return {"policy": {"policy_function": "deploy.ray:ExpectedWork", "policy_kwargs": {"target_seconds": target_seconds}}}


@dataclass
class Service:
    url: str
    cluster: Any
    node: Any
    """The second one."""
    log: Path

    def replicas(self) -> int:
        """That run."""
        from ray import serve

        states = serve.status().applications["latentserve"].deployments["Replica"].replica_states
        return states.get("RUNNING", 0)

    async def grown(self, replicas: int, seconds: float = START_SECONDS) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        async with asyncio.timeout(seconds):
            while await asyncio.to_thread(self.replicas) != replicas:
                await asyncio.sleep(0.5)
        return time.monotonic() - started


@contextlib.contextmanager
def serving(directory: Path, scaling: Mapping[str, Any]) -> Iterator[Service]:
    """As `ray.yaml` has it, only smaller and quicker to change its mind; `scaling`: its `autoscaling_config`, what differs."""
    import ray
    from ray.cluster_utils import Cluster

    port = free_port()
    config = yaml.safe_load(Path("deploy/ray.yaml").read_text())
    config["proxy_location"] = "HeadOnly"  # both nodes would have theirs at one address
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"]["vllm_flags"] = ["--max-num-seqs", str(RUN), "--max-num-queued-reqs", str(WAIT)]
    (deployment,) = application["deployments"]
    deployment |= {"max_ongoing_requests": RUN + WAIT, "max_queued_requests": 64}
    merged = deployment["autoscaling_config"] | QUICK | scaling
    deployment["autoscaling_config"] = {name: value for name, value in merged.items() if value is not None}
    file, log = directory / "ray.yaml", directory / "serve.log"
    file.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (PATIENCE | {"PYTHONPATH": str(Path.cwd())}).items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        try:
            node = cluster.add_node(**NODE)
            ray.init(address=cluster.address, log_to_driver=False, namespace="test")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ray.serve.scripts", "run", str(file), "--address", cluster.address],
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            service = Service(f"http://127.0.0.1:{port}", cluster, node, log)
            deadline = time.monotonic() + START_SECONDS
            while not is_up(service.url):
                assert process.poll() is None, log.read_text()[-6000:]
                assert time.monotonic() < deadline, log.read_text()[-6000:]
                time.sleep(0.5)
            yield service
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            started = psutil.Process().children(recursive=True)
            ray.shutdown()
            cluster.shutdown()
            left = psutil.wait_procs(started, 20)[1]
            assert not [process.name() for process in left], "engines end with their replicas"


def is_up(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    return False
