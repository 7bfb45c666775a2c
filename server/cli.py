"""`latentserve …`: thin commands over the stages. Heavy imports wait for their command."""

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, get_args

import httpx
import typer
from pydantic import ValidationError

from router.policy import Mode
from server.settings import DEMO_MODEL, Settings

app = typer.Typer(
    no_args_is_help=True, help="OpenAI-compatible serving with a hybrid latent/explicit router.", add_completion=False
)
demo = typer.Typer(no_args_is_help=True, help="The embedded demo: its questions, and how its model is made.")
train = typer.Typer(no_args_is_help=True, help="Train a reasoning network and pack it into a bundle.")
router = typer.Typer(no_args_is_help=True, help="Fit and calibrate the router.")
app.add_typer(demo, name="demo")
app.add_typer(train, name="train")
app.add_typer(router, name="router")


def _fail(message: str) -> typer.Exit:
    typer.secho(f"latentserve: {message}", fg=typer.colors.RED, err=True)
    return typer.Exit(1)


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
) -> None:
    """Serve a model in direct, latent, explicit and auto mode. Any flag that is not listed is vLLM's."""
    given = {
        "model": model, "bundle": bundle, "host": host, "port": port, "device": device,
        "default_mode": default_mode, "num_latent_tokens": num_latent_tokens,
    }  # fmt: skip
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise _fail(str(error)) from None
    from server.launch import run

    problem = run(settings, context.args)
    if problem:
        raise _fail(problem)


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
                    raise _fail(response.json().get("error", {}).get("message", response.text))
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise _fail(str(event["error"].get("message", event["error"])))
                    last = event
                    delta = event["choices"][0]["delta"] if event["choices"] else {}
                    typer.secho(delta.get("reasoning") or "", dim=True, nl=False)
                    typer.echo(delta.get("content") or "", nl=False)
    except httpx.HTTPError as error:
        raise _fail(f"cannot reach {url}: {error}. Is the server running? Start it with `latentserve serve`.") from None
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
    n: Annotated[int, typer.Option(help="Held-out questions.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 2026,
    modes: Annotated[
        str, typer.Option(help="Comma-separated; latent:64 fixes the number of latents.")
    ] = "direct,latent,explicit,auto",
    output: Annotated[Path | None, typer.Option(help="Write the records here, as JSON lines.")] = None,
) -> None:
    """Measure accuracy and generated tokens per mode on the demo's held-out questions, over HTTP."""
    from reasoning_net.evaluate import Arm, EvalConfig, main, markdown

    arms = tuple(Arm(mode, int(count) if count else None) for mode, _, count in (m.partition(":") for m in modes.split(",")))
    try:
        typer.echo(markdown(asyncio.run(main(EvalConfig(url, arms, n=n, seed=seed, output=output)))))
    except httpx.HTTPError as error:
        raise _fail(f"{url}: {error}") from None


@app.command()
def bench(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    compare: Annotated[
        str | None, typer.Option(help="A plain vLLM server of the same model, to compare explicit mode with.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests a mode and round.")] = 192,
    rounds: Annotated[int, typer.Option(help="Rounds; the modes take turns in each.")] = 3,
) -> None:
    """Measure latency alone and throughput at concurrency 64 per mode, over HTTP, as ratios."""
    from server.bench import BenchConfig, main, markdown

    try:
        typer.echo(markdown(asyncio.run(main(BenchConfig(url, compare, requests=requests, rounds=rounds)))))
    except httpx.HTTPError as error:
        raise _fail(f"{url}: {error}") from None


@demo.command()
def questions(
    n: Annotated[int, typer.Option(help="How many.")] = 10,
    seed: Annotated[int, typer.Option(help="The same seed gives the same questions.")] = 0,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
) -> None:
    """Print demo questions as JSON lines with the keys question, answer, steps, family."""
    from reasoning_net.demo.questions import Split
    from reasoning_net.demo.questions import questions as stream

    if split not in get_args(Split):
        raise _fail(f"--split must be one of {', '.join(get_args(Split))}, not {split!r}")
    for question in itertools.islice(stream(seed, split), n):  # type: ignore[arg-type]
        typer.echo(question.public_json())


@demo.command("train-base")
def train_base(
    output: Annotated[Path, typer.Option(help="Where the checkpoint goes; a run found there is resumed.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2200,
    seed: Annotated[int, typer.Option(help="Seed of the data and the weights.")] = 0,
) -> None:
    """Train the demo's base model from scratch."""
    from reasoning_net.demo.base import BaseConfig, main

    main(BaseConfig(output, steps=steps, seed=seed))


@train.command()
def sft(
    output: Annotated[Path, typer.Option(help="Where the network goes; a run found there is resumed.")],
    model: Annotated[str, typer.Option(help="The frozen base.")] = str(DEMO_MODEL),
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 3600,
    num_latents: Annotated[int, typer.Option(help="Latents per question until the nested part of the run.")] = 16,
    max_latents: Annotated[int, typer.Option(help="The most latents that the network can compute.")] = 256,
    conditioner: Annotated[str, typer.Option(help="last: the final position, as in the paper; all; all+embeddings.")] = "all",
    hidden_size: Annotated[int, typer.Option(help="Width of the network.")] = 160,
    num_layers: Annotated[int, typer.Option(help="Depth of the network.")] = 6,
    batch_size: Annotated[int, typer.Option(help="Questions a step.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the data and the weights.")] = 0,
) -> None:
    """Stage 1: train the reasoning network by supervised fine-tuning on the frozen base."""
    from reasoning_net.sft import default_config, main

    main(default_config(model, output, steps, num_latents, max_latents, conditioner, hidden_size, num_layers, batch_size, seed))


@router.command()
def fit(
    output: Annotated[Path, typer.Option(help="Where the bundle goes.")],
    net: Annotated[Path | None, typer.Option(help="Output of `train sft`; without it the bundle has a probe alone.")] = None,
    model: Annotated[str, typer.Option(help="The frozen base.")] = str(DEMO_MODEL),
    n: Annotated[int, typer.Option(help="Validation questions; a quarter of them choose the threshold.")] = 8000,
    num_latent_tokens: Annotated[int, typer.Option(help="Latents per question in serving.")] = 16,
    explicit_accuracy: Annotated[float, typer.Option(help="Measured accuracy of explicit mode.")] = 0.995,
    max_loss: Annotated[float, typer.Option(help="Accuracy that auto may lose against explicit.")] = 0.0205,
    seed: Annotated[int, typer.Option(help="Seed of the questions and the probe.")] = 1,
) -> None:
    """Fit the probe, choose the threshold of auto, and pack the bundle."""
    from router.fit import FitConfig, main

    report = main(FitConfig(model, net, output, n, num_latent_tokens, explicit_accuracy, max_loss, seed))
    typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    app()
