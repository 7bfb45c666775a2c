"""Everything at once, for a long time: `make soak` (SECONDS=600).

Mixed modes and protocols, one in ten leaves early, one in twenty is malformed, one in a hundred is too large; in the middle the
server is told to end, and its supervisor starts it again. Every request that was let in ends with an answer or an error in its
own protocol, answers are those of a quiet server, and the memory stays where it was.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil

from reasoning_net.demo.questions import questions
from tests.conftest import free_port

SECONDS = float(os.environ.get("SECONDS", "600"))
CLIENTS = 12
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
ASKED = [question.question for question in islice(questions(77, "test"), 16)]
MODES = ("direct", "latent", "explicit", "auto")
MALFORMED: tuple[dict[str, Any], ...] = (
    {"temperature": -3}, {"mode": "fast"}, {"n": 10_000}, {"messages": "hello"}, {"max_tokens": -1}, {"mdoe": "latent"},
    {"num_latent_tokens": 10**6}, {"timeout_seconds": "soon"}, {"logprobs": True, "top_logprobs": 999},
)  # fmt: skip


@dataclass
class Supervised:
    """A server that is started again whenever it ends."""

    port: int
    log: Path
    process: asyncio.subprocess.Process | None = None
    codes: list[int] = field(default_factory=list)
    _task: "asyncio.Task[None] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _run(self) -> None:
        with self.log.open("ab") as output:
            while True:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "server.cli", "serve", "--port", str(self.port), "--max-num-seqs", "8",
                    stdout=output, stderr=output,
                )  # fmt: skip
                self.codes.append(await self.process.wait())

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        assert self._task is not None
        assert self.process is not None
        self._task.cancel()
        self.process.terminate()
        self.codes.append(await self.process.wait())

    async def ready(self, *, after: int = 0) -> None:
        """After so many ends."""
        async with httpx.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if len(self.codes) >= after and (await client.get(f"{self.url}/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.2)

    def memory_mib(self) -> float:
        """Unique to its processes: what they share is counted once."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return sum(p.memory_full_info().uss for p in (parent, *parent.children(recursive=True))) / 2**20


def text_of(content: str, *, stream: bool) -> str:
    """What a chat answered."""
    if not stream:
        return str(json.loads(content)["choices"][0]["message"]["content"])
    events = (json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: {"))
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def one(client: httpx.AsyncClient, rng: random.Random, quiet: dict[tuple[str, str], str], seen: Counter[str]) -> None:
    """Ask something, and count what became of it."""
    question, mode, drawn = rng.choice(ASKED), rng.choice(MODES), rng.random()
    messages = [{"role": "user", "content": question}]
    body: dict[str, Any] = {"model": "demo", "mode": mode, "messages": messages, "temperature": 0, "max_tokens": 600}
    path = rng.choice((CHAT, CHAT, CHAT, MESSAGES, RESPONSES, COMPLETIONS))
    if path != CHAT:
        body |= {"input": question} if path == RESPONSES else {"prompt": question} if path == COMPLETIONS else {}
        body = {name: value for name, value in body.items() if name != "messages" or path == MESSAGES}
    if drawn < 0.05:
        path, body = CHAT, {"model": "demo", "messages": messages, "max_tokens": 8} | rng.choice(MALFORMED)
    elif drawn < 0.06:
        path, body = CHAT, {"model": "demo", "messages": [{"role": "user", "content": "x" * (17 * 2**20)}]}
    leaves = 0.06 <= drawn < 0.16
    stream = rng.random() < 0.5
    try:
        async with client.stream("POST", path, json=body | ({"stream": True} if stream else {})) as response:
            if leaves:
                with contextlib.suppress(StopAsyncIteration):
                    await anext(response.aiter_bytes())
                seen["left"] += 1
                return
            content = (await response.aread()).decode()
    except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        # A connection that a server closes while it ends, or one that nobody takes, is no request that was let in; a body that
        # is too large is refused while it is being sent.
        seen["refused 413" if 0.05 <= drawn < 0.06 else f"no connection ({type(error).__name__})"] += 1
        return
    status = response.status_code
    if status != 200:
        assert "message" in json.loads(content)["error"], content[:300]
        assert status < 500 or status in (503, 504), (status, content[:300])
        seen[f"refused {status}"] += 1
        return
    if stream:
        ended = content.rstrip().endswith("[DONE]") or '"type":"message_stop"' in content or "response.completed" in content
        ended = ended or "response.incomplete" in content
        assert ended or "error" in content[-500:], content[-500:]
        if "error" in content[-500:]:
            seen["error event"] += 1
            return
    else:
        found = json.loads(content)
        assert "error" not in found or found["error"] is None, content[:300]
    seen["streamed" if stream else "answered"] += 1
    if path == CHAT and (mode, question) in quiet:
        seen["compared"] += 1
        seen["differs"] += text_of(content, stream=stream) != quiet[mode, question]


async def worker(server: Supervised, number: int, until: float, quiet: dict[tuple[str, str], str], seen: Counter[str]) -> None:
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        while time.monotonic() < until:
            before = sum(count for name, count in seen.items() if name.startswith("no connection"))
            await one(client, rng, quiet, seen)
            if sum(count for name, count in seen.items() if name.startswith("no connection")) > before:
                await asyncio.sleep(0.5)


async def test_soak(tmp_path: Path) -> None:
    server, seen, quiet = Supervised(free_port(), tmp_path / "log.txt"), Counter[str](), dict[tuple[str, str], str]()
    server.start()
    try:
        await server.ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            for question in ASKED:
                for mode in ("direct", "latent", "explicit"):
                    body = {"model": "demo", "mode": mode, "temperature": 0, "max_tokens": 600}
                    answer = await client.post(CHAT, json=body | {"messages": [{"role": "user", "content": question}]})
                    quiet[mode, question] = text_of(answer.text, stream=False)
        started = time.monotonic()
        workers = [asyncio.create_task(worker(server, i, started + SECONDS, quiet, seen)) for i in range(CLIENTS)]
        await asyncio.sleep(SECONDS * 0.3)
        assert server.process is not None
        server.process.terminate()
        await server.ready(after=1)
        restarted = time.monotonic()
        await asyncio.sleep(max(0.0, 0.3 * (started + SECONDS - restarted)))
        warm = server.memory_mib()
        await asyncio.gather(*workers)
        await asyncio.sleep(2)
        grown = server.memory_mib() / warm - 1
        async with httpx.AsyncClient(base_url=server.url) as client:
            metrics = (await client.get("/metrics")).text.splitlines()
        gauges = [line for line in metrics if line.startswith(("latentserve_requests_in_flight", "vllm:num_requests_running{"))]
        figures = dict(sorted(seen.items())) | {"memory grown": f"{grown:.2%}", "after warm-up (MiB)": round(warm)}
        print(json.dumps(figures, indent=2))
    finally:
        await server.stop()
    assert all(float(line.split()[-1]) == 0 for line in gauges), gauges
    assert server.codes == [0, 0], server.codes
    assert seen["differs"] == 0
    assert seen["compared"] > 5
    assert grown <= 0.03 or SECONDS < 300  # a server is not warm before
