"""`latentserve …`: thin commands over the stages. Heavy imports wait for their command."""

import asyncio
import json
import sys
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


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    mode: Annotated[Mode, typer.Option(help="How to answer.")] = Mode.AUTO,
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the server's first model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Limit on generated tokens.")] = None,
) -> None:
    """Ask a running server, with the thinking dimmed and one line of figures at the end."""
    text = sys.stdin.read() if question == "-" else question
    try:
        with httpx.Client(base_url=url, timeout=300) as client:
            name = model or client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
            body = {
                "model": name, "mode": mode, "stream": True, "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": text}],
            }  # fmt: skip
            if max_tokens:
                body["max_tokens"] = max_tokens
            last: dict[str, object] = {}
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise fail(response.json().get("error", {}).get("message", response.text))
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise fail(str(event["error"].get("message", event["error"])))
                    last = event
                    delta = event["choices"][0]["delta"] if event["choices"] else {}
                    typer.secho(delta.get("reasoning") or "", dim=True, nl=False)
                    typer.echo(delta.get("content") or "", nl=False)
    except httpx.HTTPError as error:
        raise fail(f"cannot reach {url}: {error}. Is the server running? Start it with `latentserve serve`.") from None
    typer.echo()
    typer.secho(_summary(last), dim=True, err=True)


def _summary(last: dict[str, object]) -> str:
    route, usage = last.get("route"), last.get("usage")
    if not isinstance(route, dict) or not isinstance(usage, dict):
        return ""
    score = "" if route["score"] is None else f", score {route['score']:.2f}"
    return f"[{route['mode']}: {route['reason']}{score}; {usage['completion_tokens']} tokens, {route['latent_tokens']} latents]"


@app.command("eval")
def evaluate(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
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
    from reasoning_net.evaluate import Arm, EvalConfig, main

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
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Of the servers.")] = None,
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
