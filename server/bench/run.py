"""Load over HTTP, as a client sees it: time to first token, time per token, end-to-end, throughput; per mode, and as ratios.

    latentserve bench --url http://127.0.0.1:8000 [--compare http://127.0.0.1:8001]
    latentserve bench --rate 4,8,16 --mix latent:0.7,explicit:0.3 --output runs/bench
    latentserve bench --random-weights qwen3-0.6b --concurrency 1,8 --requests 16
    latentserve bench --conversation 10 --modes latent,explicit,auto --rounds 6

In every round all arms (modes, the mix, the other server) take turns at each load point, on the same fresh questions, so that
a noisy machine treats all alike. A closed loop (`--concurrency`) sends a request when another one ends, so a slow server sees
less load. An open loop (`--rate`) sends at the times of a Poisson process, whatever the server does, and a request's seconds
count from when it was to arrive: one that had to wait for the client has waited (no coordinated omission).

A conversation (`--conversation`) asks one question after another, each after all that were asked and answered before it;
answers are the task's own, so that every arm has the same prompts. Its load points are its turns.
"""

import asyncio
import itertools
import os
import platform
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
from cyclopts import Parameter
from pydantic import NonNegativeInt, PositiveInt
from tqdm import tqdm

from reasoning_net.errors import StageError, unreachable
from reasoning_net.options import LOCAL_SERVER, SERVER, ApiKey, Flat, Questions, Url
from reasoning_net.stages.evaluate import Arm
from reasoning_net.tasks import TaskSpec
from server.bench.client import ServerGoneError, complete
from server.bench.figures import Request, failures, markdown, write
from server.bench.load import COMPARED, Lengths, Load, Mix, arrivals, load_points, mixes


@dataclass(frozen=True, slots=True)
class BenchConfig:
    url: Url = LOCAL_SERVER
    compare: Annotated[str | None, SERVER] = None
    """A plain vLLM server of the same model, to compare explicit mode with."""
    random_weights: str | None = None
    """Instead of --url: serve random weights of a named shape, such as qwen3-0.6b."""
    concurrency: str | None = None
    """Closed loops: so many requests at once. Default, without --rate: 1,64."""
    rate: str = ""
    """Open loops: Poisson arrivals, so many a second, such as 4,8,16."""
    modes: str = "direct,latent,explicit"
    """As in eval: latent:64 and explicit:128 set a number."""
    conversation: PositiveInt | None = None
    """Instead of loops: conversations of so many turns, one at a time."""
    system_words: NonNegativeInt = 0
    """Length of a system prompt that an arm's conversations share, in words."""
    mix: str = ""
    """One more arm, each request in a mode by chance: latent:0.7,explicit:0.3."""
    requests: PositiveInt = 192
    """Of a mode, round and load point; at concurrency 1 an eighth of them."""
    rounds: PositiveInt = 3
    """Rounds; the modes take turns in each."""
    warmup: NonNegativeInt = 8
    """Requests of a mode that come first and are not counted."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    seed: int = 1
    """Seed of the questions, the arrivals and the mix."""
    max_tokens: PositiveInt | None = None
    """Limit on generated tokens."""
    random_lengths: Annotated[Lengths, Flat] = field(default_factory=Lengths)
    serve_flags: Annotated[str, Parameter(allow_leading_hyphen=True)] = ""
    """More flags for the server with random weights, in one string."""
    api_key: ApiKey = field(default=None, repr=False)
    output: Path | None = None
    """Directory for bench.json, bench.md, the requests and plots."""

    @property
    def arms(self) -> tuple[Mix, ...]:
        """Raises `StageError`."""
        return mixes(self.modes, self.mix)

    @property
    def loads(self) -> tuple[Load, ...]:
        """Raises `StageError`."""
        if self.conversation:
            return tuple(Load("turn", turn) for turn in range(1, self.conversation + 1))
        return load_points("1,64" if self.concurrency is None and not self.rate else self.concurrency or "", self.rate)

    @property
    def lengths(self) -> Lengths | None:
        """Of the answers of random weights, which know no end."""
        return self.random_lengths if self.random_weights else None

    def limit(self, mode: Arm | None) -> dict[str, Any]:
        if self.lengths:
            return self.lengths.limit(mode)
        return {"max_tokens": self.max_tokens} if self.max_tokens else {}

    def body(self, model: str, messages: list[dict[str, str]], mode: Arm | None) -> dict[str, Any]:
        """Of a greedy request."""
        return {"model": model, "messages": messages, "temperature": 0} | (mode.body() if mode else {}) | self.limit(mode)


@dataclass(frozen=True, slots=True)
class _Server:
    client: httpx.AsyncClient
    model: str


class Bench:
    """The records are there from the first on, whatever ends the run."""

    def __init__(self, config: BenchConfig) -> None:
        self.config = config
        self.records: list[Request] = []
        self.environment = _environment()
        self._task = config.task.load()
        self._run = secrets.token_hex(3)

    async def run(self) -> None:
        """Raises `StageError` when a server cannot be used, or is gone."""
        config = self.config
        arms = (*config.arms, *([Mix(COMPARED)] if config.compare else []))
        if config.conversation:
            per_round = config.conversation * self._conversations
        else:
            per_round = sum(load.num_requests(config.requests) for load in config.loads)
        async with AsyncExitStack() as stack:
            ours = await stack.enter_async_context(self._server(config.url))
            other = await stack.enter_async_context(self._server(config.compare)) if config.compare else ours
            servers = {arm: other if arm.name == COMPARED else ours for arm in arms}
            with tqdm(total=len(arms) * (config.warmup + config.rounds * per_round), unit="request") as progress:
                if config.warmup:
                    for arm in arms:
                        await self._turn(servers[arm], arm, Load("closed", config.warmup), None, progress)
                for round_ in range(config.rounds):
                    in_turn = arms[round_ % len(arms) :] + arms[: round_ % len(arms)]
                    if config.conversation:
                        for number, arm in itertools.product(range(self._conversations), in_turn):
                            await self._talk(servers[arm], arm, number, round_, progress)
                        continue
                    for load, arm in itertools.product(config.loads, in_turn):
                        await self._turn(servers[arm], arm, load, round_, progress)

    async def _turn(self, server: _Server, arm: Mix, load: Load, round_: int | None, progress: tqdm) -> None:
        """One arm at one load point; without a round it is a warm-up, and nothing is recorded."""
        bodies = self._bodies(server.model, arm, load, round_)
        progress.set_description(f"{load}, {arm.name}" if round_ is not None else f"warm-up, {arm.name}")
        start = time.perf_counter()

        async def send(body: dict[str, Any], due: float) -> None:
            answer = await complete(server.client, body, due)
            if round_ is not None:
                self.records.append(Request(arm.name, load, round_, due - start, answer))
            progress.update()

        async def closed(queue: Iterator[dict[str, Any]]) -> None:
            for body in queue:
                await send(body, time.perf_counter())

        async def arriving(body: dict[str, Any], due: float) -> None:
            await asyncio.sleep(due - time.perf_counter())
            await send(body, due)

        try:
            async with asyncio.TaskGroup() as group:
                if load.loop == "closed":
                    queue = iter(bodies)
                    for _ in range(int(load.value)):
                        group.create_task(closed(queue))
                else:
                    rng = random.Random(f"arrivals {self.config.seed} {round_}")
                    for body, seconds in zip(bodies, arrivals(load.value, len(bodies), rng), strict=True):
                        group.create_task(arriving(body, start + seconds))
        except* ServerGoneError as group_error:
            raise group_error.exceptions[0] from None

    @property
    def _conversations(self) -> int:
        """Of an arm and a round: an eighth of the requests of a loop, as of those alone."""
        return -(-self.config.requests // (8 * (self.config.conversation or 1)))

    async def _talk(self, server: _Server, arm: Mix, number: int, round_: int, progress: tqdm) -> None:
        """One conversation."""
        config, start = self.config, time.perf_counter()
        drawn = self._task.examples(config.seed + 1000 * round_ + number, "test")
        examples = list(itertools.islice((e for e in drawn if len(e.messages) == 1), len(config.loads)))
        words = itertools.islice(itertools.cycle("Be brief and answer with one sentence.".split()), config.system_words)
        messages = [{"role": "system", "content": " ".join([f"{self._run} {round_} {arm.name}", *words])}]
        modes = arm.draw(len(examples), random.Random(f"{arm.name} {round_} {number}"))
        progress.set_description(f"conversation, {arm.name}")
        for load, example, mode in zip(config.loads, examples, modes, strict=True):
            messages += example.messages
            due = time.perf_counter()
            answer = await complete(server.client, config.body(server.model, messages, mode), due)
            self.records.append(Request(arm.name, load, round_, due - start, answer))
            messages.append({"role": "assistant", "content": example.reply or example.answer})
            progress.update()

    def _bodies(self, model: str, arm: Mix, load: Load, round_: int | None) -> list[dict[str, Any]]:
        """Fresh questions each round, the same for every arm, after a system prompt of their own.

        No turn finds the prompts of another one, or of an earlier run, in the prefix cache.
        """
        config = self.config
        n = config.warmup if round_ is None else load.num_requests(config.requests)
        seed = config.seed + (config.rounds if round_ is None else round_)
        questions = [example.messages for example in itertools.islice(self._task.examples(seed, "test"), n)]
        if len(questions) < n:
            raise StageError(
                f"{config.task.source} has {len(questions)} test questions, and {n} requests want one each: lower --requests, "
                "or use every row with --whole."
            )
        tag = {"role": "system", "content": f"Be brief. {self._run} {round_} {load} {arm.name}"}
        drawn = arm.draw(n, random.Random(f"{arm.name} {load} {seed}"))
        return [config.body(model, [tag, *messages], mode) for messages, mode in zip(questions, drawn, strict=True)]

    @asynccontextmanager
    async def _server(self, url: str) -> AsyncIterator[_Server]:
        headers = {"Authorization": f"Bearer {self.config.api_key}"} if self.config.api_key else {}
        # Idle connections are given up before the server does, or a request could meet the server closing its connection.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits) as client:
            try:
                models = (await client.get("/v1/models")).raise_for_status().json()["data"]
                model = str(models[0]["id"])
                build = await client.get("/version")
            except httpx.HTTPStatusError as error:
                hint = " Give its key: --api-key." if error.response.status_code == 401 else ""
                raise StageError(f"{url} answers /v1/models with {error.response.status_code}.{hint}") from error
            except httpx.HTTPError as error:
                raise StageError(unreachable(url, error)) from error
            except (ValueError, LookupError, TypeError) as error:
                raise StageError(f"{url} does not speak OpenAI's protocol: /v1/models says {error!r}") from error
            is_vllm = build.headers.get("content-type") == "application/json"
            self.environment["servers"][url] = {"model": model} | (build.json() if is_vllm else {})
            yield _Server(client, model)


def main(config: BenchConfig) -> tuple[str, str | None]:
    """The tables, and what went wrong: a run that is cut short keeps what it has measured."""
    if config.random_weights and (config.url != LOCAL_SERVER or config.max_tokens):
        raise StageError(
            "--random-weights serves its own model with answers of a fixed length: without --url and --max-tokens."
        )
    if not config.arms or not config.loads:
        raise StageError("Nothing to measure: name --modes or a --mix, and --concurrency or --rate.")
    if config.output:
        try:
            config.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StageError(f"--output {config.output} cannot be written: {error}.") from error
    if not config.random_weights:
        return _measure(config)
    if any(arm.mode == "auto" for mix in config.arms for arm, _ in mix.shares):
        raise StageError("With random weights auto decides by chance: name other --modes.")
    from server.bench import random_weights  # torch

    at_once = max((int(load.value) for load in config.loads if load.loop == "closed"), default=64)
    reply_tokens = config.random_lengths.answer_tokens + config.random_lengths.thinking_tokens
    try:
        with (
            TemporaryDirectory(prefix="latentserve-bench-") as directory,
            random_weights.serve(config.random_weights, Path(directory), at_once, reply_tokens, config.serve_flags) as url,
        ):
            return _measure(replace(config, url=url), random_weights.NOTE)
    except KeyboardInterrupt:
        return "", "interrupted before the server with random weights was ready."


def _measure(config: BenchConfig, note: str = "") -> tuple[str, str | None]:
    bench = Bench(config)
    problem = None
    try:
        asyncio.run(bench.run())
    except KeyboardInterrupt:
        problem = f"interrupted after {len(bench.records)} requests."
    except ServerGoneError as error:
        problem = f"{error} The run stopped after {len(bench.records)} requests."
    if not bench.records:
        return "", problem
    if all(record.answer.error for record in bench.records):
        problem = problem or f"all {len(bench.records)} requests failed: {failures(bench.records)}"
    if config.output:
        write(config.output, bench.records, settings(config), bench.environment, note, problem)
    return markdown(bench.records, note), problem


def settings(config: BenchConfig) -> dict[str, Any]:
    """What a run can be repeated with; without the key."""
    return {
        "url": config.url,
        "compare": config.compare,
        "arms": {mix.name: {str(arm): share for arm, share in mix.shares} for mix in config.arms},
        "loads": [str(load) for load in config.loads],
        "data": config.task.source,
        "lengths": asdict(config.lengths) if config.lengths else None,
    } | {name: getattr(config, name) for name in _REPEATED}


_REPEATED = ("requests", "rounds", "warmup", "seed", "max_tokens", "random_weights", "conversation", "system_words")


def _environment() -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "latentserve": version("latentserve"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "servers": {},
    }
