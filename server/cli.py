"""`latentserve …`: thin commands over the stages. Heavy imports wait for their command."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import typer
from pydantic import ValidationError

from reasoning_net.tasks import TaskSpec
from router.policy import Mode
from server import stages
from server.settings import Settings
from server.stages import fail

app = typer.Typer(
    no_args_is_help=True, help="OpenAI-compatible serving with a hybrid latent/explicit router.", add_completion=False
)
app.add_typer(stages.demo, name="demo")
app.add_typer(stages.train, name="train")
app.add_typer(stages.analyse, name="analyse")
app.add_typer(stages.router, name="router")
app.command()(stages.bundle)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint directory or Hugging Face id. Default: the embedded demo.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle directory. Default: the demo's for the demo, else none.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    default_mode: Annotated[Mode | None, typer.Option(help="Mode of requests that name none.")] = None,
    num_latent_tokens: Annotated[int | None, typer.Option(help="Latents per question. Default: the bundle's.")] = None,
    policy: Annotated[str | None, typer.Option(help="Of mode auto. Default: utility with a probe, else entropy.")] = None,
) -> None:
    """Serve a model in direct, latent, explicit and auto mode. Any flag that is not listed is vLLM's."""
    given = {
        "model": model, "bundle": bundle, "host": host, "port": port, "device": device,
        "default_mode": default_mode, "num_latent_tokens": num_latent_tokens, "policy": policy,
    }  # fmt: skip
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise fail(str(error)) from None
    from server.launch import run

    problem = run(settings, context.args)
    if problem:
        raise fail(problem)


ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Where the server wants one.")]


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """A server that does not answer ends a command in one sentence."""
    try:
        yield
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise fail(f"cannot reach {url}: {what}. Is the server running? Start it with `latentserve serve`.") from None


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; - or nothing reads it from standard input.")] = "-",
    mode: Annotated[Mode, typer.Option(help="How to answer.")] = Mode.AUTO,
    url: stages.Url = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the server's first model.")] = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Limit on generated tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0: greedy. Default: the server's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
) -> None:
    """Ask a running server: the answer on standard output, thinking (dimmed) and one line of figures on standard error."""
    from server.ask import AskError, Question
    from server.ask import ask as send

    text = sys.stdin.read().strip() if question == "-" else question
    if not text:
        raise fail("there is no question: give it as an argument or on standard input")

    def show(reasoning: str, content: str) -> None:
        if not as_json:
            typer.secho(reasoning, dim=True, nl=False, err=True)
            typer.echo(content, nl=False)

    with reaching(url):
        try:
            reply = send(Question(text, mode, url, model, api_key, system, max_tokens, temperature), show)
        except AskError as error:
            raise fail(str(error)) from None
        except KeyboardInterrupt:  # closing the connection has stopped the work
            raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(asdict(reply), ensure_ascii=False, indent=2))
        return
    typer.echo()
    typer.secho(reply.summary, dim=True, err=True)


@app.command()
def top(
    url: stages.Url = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    window: Annotated[float, typer.Option(min=1, help="Seconds that the figures are of.")] = 15.0,
    once: Annotated[bool, typer.Option(help="Print the table once, after one interval.")] = False,
) -> None:
    """Watch a running server by mode: rates, latencies, tokens, and what the engine and the router do."""
    from rich.console import Console
    from rich.live import Live

    from server.top import watch

    console = Console()
    with reaching(url):
        views = watch(url, interval, window, api_key)
        if once:
            console.print(next(views))
            return
        try:
            with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
                for view in views:
                    live.update(view, refresh=True)
        except KeyboardInterrupt:
            return


@app.command("eval")
def evaluate(
    url: stages.Url = "http://127.0.0.1:8000",
    data: stages.Data = "demo",
    preset: stages.Preset = None,
    columns: stages.Columns = "",
    whole: stages.Whole = False,
    n: Annotated[int, typer.Option(help="Held-out questions.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 2026,
    modes: Annotated[
        str, typer.Option(help="Comma-separated; latent:64 sets the number of latents, explicit:128 the thinking budget.")
    ] = "direct,latent,explicit,auto",
    samples: Annotated[int, typer.Option(min=1, help="Answers per question (k of pass@k).")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy. The paper: 0.6.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="The paper: 0.95.")] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Sampling runs, for the standard error.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(help="Limit on generated tokens.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 64,
    output: Annotated[Path | None, typer.Option(help="Directory for records, summary and plots.")] = None,
    record: Annotated[Path | None, typer.Option(help="A bundle that gets the summary into its scores.")] = None,
) -> None:
    """Measure accuracy, tokens and seconds per mode on held-out questions, over HTTP."""
    from reasoning_net.stages.evaluate import Arm, EvalConfig, main

    with stages.one_sentence(output):
        config = EvalConfig(
            url, tuple(map(Arm.parse, modes.split(","))), TaskSpec(data, preset, columns, whole), n=n, seed=seed,
            seeds=seeds, samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens,
            concurrency=concurrency, output=output, bundle=record,
        )  # fmt: skip
        try:
            typer.echo(asyncio.run(main(config)))
        except httpx.HTTPError as error:
            raise fail(f"{url}: {error!r}") from None


@app.command()
def bench(
    url: Annotated[str | None, typer.Option(help="The server. Default: http://127.0.0.1:8000.")] = None,
    compare: Annotated[
        str | None, typer.Option(help="A plain vLLM server of the same model, to compare explicit mode with.")
    ] = None,
    random_weights: Annotated[
        str | None, typer.Option(help="Instead of --url: serve random weights of a named shape, such as qwen3-0.6b.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loops: so many requests at once. Default, without --rate: 1,64.")
    ] = None,
    rate: Annotated[str, typer.Option(help="Open loops: Poisson arrivals, so many a second, such as 4,8,16.")] = "",
    modes: Annotated[str, typer.Option(help="As in eval: latent:64 and explicit:128 set a number.")] = "direct,latent,explicit",
    mix: Annotated[str, typer.Option(help="One more arm, each request in a mode by chance: latent:0.7,explicit:0.3.")] = "",
    requests: Annotated[
        int, typer.Option(min=1, help="Of a mode, round and load point; at concurrency 1 an eighth of them.")
    ] = 192,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the modes take turns in each.")] = 3,
    warmup: Annotated[int, typer.Option(min=0, help="Requests of a mode that come first and are not counted.")] = 8,
    data: stages.Data = "demo",
    preset: stages.Preset = None,
    columns: stages.Columns = "",
    whole: stages.Whole = False,
    seed: Annotated[int, typer.Option(help="Seed of the questions, the arrivals and the mix.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Limit on generated tokens.")] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer of random weights.")] = 32,
    thinking_tokens: Annotated[int, typer.Option(min=1, help="Length of their thinking, in explicit mode.")] = 256,
    serve_flags: Annotated[str, typer.Option(help="More flags for the server with random weights, in one string.")] = "",
    api_key: ApiKey = None,
    output: Annotated[Path | None, typer.Option(help="Directory for bench.json, bench.md, the requests and plots.")] = None,
) -> None:
    """Measure latency and throughput per mode, over HTTP: closed and open loops, percentiles, ratios."""
    from server.bench.load import Lengths, load_points, mixes
    from server.bench.run import BenchConfig, main

    with stages.one_sentence(output):
        loads = load_points("1,64" if concurrency is None and not rate else concurrency or "", rate)
        if random_weights and (url or max_tokens):
            raise fail("--random-weights serves its own model with answers of a fixed length: without --url and --max-tokens")
        config = BenchConfig(
            url or "http://127.0.0.1:8000", mixes(modes, mix), loads, compare, TaskSpec(data, preset, columns, whole),
            requests=requests, rounds=rounds, warmup=warmup, seed=seed, max_tokens=max_tokens, output=output, api_key=api_key,
            random_weights=random_weights, lengths=Lengths(answer_tokens, thinking_tokens) if random_weights else None,
            serve_flags=serve_flags,
        )  # fmt: skip
        tables, problem = main(config)
    if tables:
        typer.echo(tables)
    if problem:
        raise fail(problem)


if __name__ == "__main__":
    app()
