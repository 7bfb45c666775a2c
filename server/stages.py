"""`latentserve train …, router …, analyse …, demo …, bundle`: thin commands over the offline stages."""

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import httpx
import typer
from pydantic import ValidationError

from reasoning_net.config import Conditioner
from reasoning_net.demo.questions import Split
from reasoning_net.tasks import TaskSpec
from server.settings import DEMO_BUNDLE, DEMO_MODEL, Settings

if TYPE_CHECKING:
    from router.calibration import Target

demo = typer.Typer(no_args_is_help=True, help="The embedded demo: its questions, and how its model is made.")
train = typer.Typer(no_args_is_help=True, help="Train a reasoning network: traces, SFT, GRPO, sweeps. Every stage resumes.")
analyse = typer.Typer(no_args_is_help=True, help="Analyses of the paper.")
router = typer.Typer(no_args_is_help=True, help="Fit and calibrate the router.")

Model = Annotated[str, typer.Option(help="The frozen base: checkpoint directory or Hugging Face id.")]
Data = Annotated[
    str,
    typer.Option(help="demo, demo:FAMILY,…, a .jsonl or .parquet file, or owner/name[:config]:split on the Hugging Face hub."),
]
Preset = Annotated[
    str | None, typer.Option(help="Columns of a known data set: gsm8k, math, math-500, openr1-math, deepscaler, traces.")
]
Columns = Annotated[str, typer.Option(help="question=…,answer=…,reply=…,family=…,level=… where no preset fits.")]
Whole = Annotated[bool, typer.Option(help="Use every row, instead of the 80/10/10 split by the hash of the question.")]
LayoutFile = Annotated[Path | None, typer.Option(help="Prompt layout as JSON, where it does not follow from the base.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this mass.")]
Seed = Annotated[int, typer.Option(help="Seed of the data and the weights.")]


def fail(message: str) -> typer.Exit:
    typer.secho(f"latentserve: {message}", fg=typer.colors.RED, err=True)
    return typer.Exit(1)


@contextmanager
def one_sentence(output: Path | None = None) -> Iterator[None]:
    """What a stage's user can mend ends in one sentence instead of a traceback."""
    from reasoning_net.bundle import BundleError
    from reasoning_net.errors import StageError
    from router.policy import RouterError

    try:
        yield
    except (StageError, BundleError, RouterError) as error:
        raise fail(" ".join(str(error).split())) from None
    except Exception:
        # torch, safetensors and the standard library each say it in their own way.
        if output is not None and output.exists() and shutil.disk_usage(output).free < 2**20:
            raise fail(
                f"the disk of {output} is full. Free some space and run the same command: it resumes from its last checkpoint."
            ) from None
        raise


def _device() -> Literal["cpu", "cuda"]:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@demo.command()
def questions(
    n: Annotated[int, typer.Option(help="How many.")] = 10,
    seed: Annotated[int, typer.Option(help="The same seed gives the same questions.")] = 0,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
) -> None:
    """Print demo questions as JSON lines with the keys question, answer, steps, family."""
    from reasoning_net.demo.questions import questions as stream

    for question in itertools.islice(stream(seed, _one_of(split, "--split", get_args(Split))), n):
        typer.echo(question.public_json())


@demo.command("train-base")
def train_base(
    output: Annotated[Path, typer.Option(help="Where the checkpoint goes; a run found there is resumed.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2200,
    start: Annotated[Path | None, typer.Option("--from", help="Go on from this checkpoint instead of from scratch.")] = None,
    direct_share: Annotated[float, typer.Option(min=0, max=1, help="Share of conversations answered without a chain.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Train the demo's base model."""
    from reasoning_net.demo.base import BaseConfig, main

    with one_sentence(output):
        main(BaseConfig(output, steps=steps, start=start, direct_share=direct_share, seed=seed))


@train.command()
def traces(
    output: Annotated[Path, typer.Option(help="Directory of traces.jsonl and hidden_states/; a run found there goes on.")],
    model: Model = str(DEMO_MODEL),
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    whole: Whole = False,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    n: Annotated[int, typer.Option(help="Questions.")] = 1000,
    max_tokens: Annotated[int, typer.Option(help="Limit on thinking and answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.0,
    top_p: TopP = 1.0,
    layout: LayoutFile = None,
    seed: Seed = 0,
) -> None:
    """Explicit answers of the base: X, R, Y, whether Y is right, tokens, and the final hidden state of X."""
    from reasoning_net.rollouts import Sampling
    from reasoning_net.stages.traces import TracesConfig, main

    with one_sentence(output):
        sampling = Sampling(max_tokens, temperature, top_p, seed=seed)
        counts = main(
            TracesConfig(
                model, output, TaskSpec(data, preset, columns, whole), split=_one_of(split, "--split", get_args(Split)), n=n,
                sampling=sampling, layout=layout, device=_device(), seed=seed,
            )
        )  # fmt: skip
        typer.echo(json.dumps(counts, indent=2))


@train.command()
def sft(
    output: Annotated[Path, typer.Option(help="Where the network goes; a run found there is resumed.")],
    model: Model = str(DEMO_MODEL),
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    whole: Whole = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    num_latents: Annotated[int, typer.Option(help="Latents per question until the nested part of the run.")] = 16,
    max_latents: Annotated[int, typer.Option(help="The most latents that the network can compute.")] = 256,
    nested_from: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the steps after which half of the batches draw their number of latents."),
    ] = 0.4,
    conditioner: Annotated[
        str, typer.Option(help="last: the final position, as in the paper; all; all+embeddings.")
    ] = "all+embeddings",
    backbone: Annotated[
        str | None, typer.Option(help="Pre-trained Qwen3 to start from (Qwen3-Embedding-0.6B in the paper), by path or id.")
    ] = None,
    hidden_size: Annotated[int, typer.Option(help="Width of a fresh network.")] = 160,
    num_layers: Annotated[int, typer.Option(help="Depth of a fresh network.")] = 6,
    batch_size: Annotated[int, typer.Option(help="Questions a batch.")] = 64,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1,
    muon_lr: Annotated[float, typer.Option(help="Peak learning rate of matrices (Muon).")] = 0.015,
    adamw_lr: Annotated[float, typer.Option(help="Peak learning rate of everything else (AdamW).")] = 0.002,
    schedule: Annotated[str, typer.Option(help="linear (a plateau, then down) or cosine.")] = "linear",
    milestone_weight: Annotated[float, typer.Option(help="Of the auxiliary loss on the chain's intermediate results.")] = 0.5,
    average_decay: Annotated[float, typer.Option(help="Save an exponential moving average with this decay; 0: off.")] = 0.0,
    checkpointing: Annotated[bool, typer.Option(help="Recompute the base's activations: less memory, more time.")] = False,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer questions are left out.")] = 1024,
    max_reply_tokens: Annotated[int, typer.Option(help="Longer replies are left out.")] = 512,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 200,
    layout: LayoutFile = None,
    seed: Seed = 0,
) -> None:
    """Stage 1: train the reasoning network on the frozen base (SFT). `accelerate launch` for several GPUs."""
    from reasoning_net.stages.sft import SftConfig, main
    from reasoning_net.training import OptimizerConfig

    with one_sentence(output):
        main(
            SftConfig(
                model, output, TaskSpec(data, preset, columns, whole), layout=layout, steps=steps, batch_size=batch_size,
                accumulate=accumulate, num_latents=num_latents, max_latents=max_latents, nested_from=nested_from,
                conditioner=_one_of(conditioner, "--conditioner", get_args(Conditioner)), backbone=backbone,
                hidden_size=hidden_size, num_layers=num_layers, milestone_weight=milestone_weight, average_decay=average_decay,
                checkpointing=checkpointing, max_prompt_tokens=max_prompt_tokens, max_reply_tokens=max_reply_tokens,
                save_every=save_every, seed=seed,
                optimizer=OptimizerConfig(
                    muon_lr=muon_lr, adamw_lr=adamw_lr, schedule=_one_of(schedule, "--schedule", ("linear", "cosine"))
                ),
            )
        )  # fmt: skip


@train.command()
def grpo(
    init: Annotated[Path, typer.Option(help="Output of `train sft`: where to start, and the reference of the KL term.")],
    output: Annotated[Path, typer.Option(help="Where the network goes; a run found there is resumed.")],
    model: Model = str(DEMO_MODEL),
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    whole: Whole = False,
    steps: Annotated[int, typer.Option(help="Steps, each on fresh rollouts.")] = 100,
    questions: Annotated[int, typer.Option(help="Questions a step.")] = 64,
    rollouts: Annotated[int, typer.Option(min=2, help="Rollouts per question (K).")] = 8,
    num_latents: Annotated[int, typer.Option(help="Latents per question.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Limit on a rollout. The paper: 2048.")] = 24,
    temperature: Annotated[float, typer.Option(help="Of the rollouts.")] = 0.6,
    top_p: TopP = 0.95,
    inner_steps: Annotated[int, typer.Option(min=1, help="Updates per batch of rollouts.")] = 1,
    clip: Annotated[float, typer.Option(help="ε of the clipped ratio.")] = 0.2,
    clip_high: Annotated[float | None, typer.Option(help="Upper ε where it differs (clip-higher).")] = None,
    kl_weight: Annotated[float, typer.Option(help="β of the KL to the stage-1 network.")] = 2e-3,
    shaping: Annotated[str, typer.Option(help="seed (SEED-GRPO), d3s (down-sampling of rollouts), or both with a comma.")] = "",
    backend: Annotated[str, typer.Option(help="Where rollouts run: vllm, or transformers as the reference.")] = "vllm",
    muon_lr: Annotated[float, typer.Option(help="Peak learning rate of matrices (Muon).")] = 1e-3,
    adamw_lr: Annotated[float, typer.Option(help="Peak learning rate of everything else (AdamW).")] = 1e-4,
    seed: Seed = 0,
) -> None:
    """Stage 2: reinforce the latents whose answers are right (GRPO), rollouts on the vLLM engine."""
    from reasoning_net.rollouts import Backend, Sampling
    from reasoning_net.stages.grpo import GrpoConfig, main

    with one_sentence(output):
        config = GrpoConfig(
            model, init, output, TaskSpec(data, preset, columns, whole), steps=steps, questions=questions,
            num_latents=num_latents, sampling=Sampling(max_tokens, temperature, top_p, rollouts), inner_steps=inner_steps,
            clip=clip, clip_high=clip_high, kl_weight=kl_weight, shapings=tuple(filter(None, shaping.split(","))),
            backend=_one_of(backend, "--backend", get_args(Backend)), seed=seed,
        )  # fmt: skip
        main(replace(config, optimizer=replace(config.optimizer, muon_lr=muon_lr, adamw_lr=adamw_lr)))


@train.command()
def sweep(
    output: Annotated[Path, typer.Option(help="Directory of the variants; finished ones are kept.")],
    model: Model = str(DEMO_MODEL),
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    whole: Whole = False,
    num_latents: Annotated[str, typer.Option(help="Comma-separated numbers of latents.")] = "64,128,256,512",
    conditioners: Annotated[str, typer.Option(help="Comma-separated.")] = "all+embeddings",
    steps: Annotated[int, typer.Option(help="SFT steps of each variant.")] = 600,
    batch_size: Annotated[int, typer.Option(help="Questions a batch with the fewest latents; with more there are fewer.")] = 64,
    grpo_steps: Annotated[int, typer.Option(help="GRPO steps of each variant; 0: SFT alone.")] = 0,
    test_on: Annotated[int, typer.Option(help="Test questions.")] = 1000,
    layout: LayoutFile = None,
    seed: Seed = 0,
) -> None:
    """The paper's ablations: numbers of latents, conditioners, SFT against SFT + GRPO. One table at the end."""
    from reasoning_net.stages.grpo import GrpoConfig
    from reasoning_net.stages.sft import SftConfig
    from reasoning_net.stages.sweep import SweepConfig, main

    with one_sentence(output):
        task = TaskSpec(data, preset, columns, whole)
        names = tuple(_one_of(name, "--conditioners", get_args(Conditioner)) for name in conditioners.split(","))
        first = SftConfig(model, output, task, layout=layout, steps=steps, batch_size=batch_size, seed=seed)
        second = GrpoConfig(model, output, output, task, steps=grpo_steps, seed=seed) if grpo_steps else None
        typer.echo(main(SweepConfig(first, second, _numbers(num_latents, "--num-latents"), names, test_on)))


@analyse.command()
def trajectory(
    traces: Annotated[Path, typer.Option(help="traces.jsonl of `train traces`.")],
    output: Annotated[Path, typer.Option(help="Directory of trajectory.json and trajectory.png.")],
    model: Model = str(DEMO_MODEL),
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    n: Annotated[int, typer.Option(help="Chains.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of what is dropped.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Limit on an answer.")] = 24,
    layout: LayoutFile = None,
) -> None:
    """Drop tokens, or whole steps, of the written chain, and see what answers are left (section 2 of the paper)."""
    from reasoning_net.analysis.trajectory import TrajectoryConfig, main

    with one_sentence(output):
        task = TaskSpec(data, preset, columns, False)
        typer.echo(main(TrajectoryConfig(model, traces, output, task, n=n, seeds=seeds, max_tokens=max_tokens, layout=layout)))


@router.command()
def fit(
    bundle: Annotated[Path, typer.Option(help="Gets the probe and the calibration; made by `latentserve bundle`.")],
    model: Model = str(DEMO_MODEL),
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    whole: Whole = False,
    n: Annotated[int, typer.Option(help="Validation questions; a quarter of them are held out.")] = 8000,
    explicit_questions: Annotated[int, typer.Option(help="Of the others, as many are answered explicitly as well.")] = 1000,
    samples: Annotated[int, typer.Option(help="Direct and latent answers per question.")] = 4,
    temperature: Annotated[float, typer.Option(help="Of the answers; 0: one greedy answer each.")] = 0.6,
    top_p: TopP = 0.95,
    hidden_size: Annotated[int, typer.Option(help="Of the probe; 0: linear heads.")] = 128,
    features: Annotated[str, typer.Option(help="last, mean, latents: what the probe reads; last,latents by default.")] = "",
    layers: Annotated[str, typer.Option(help="Earlier layers whose states join last and mean, such as 2,4.")] = "",
    max_loss: Annotated[float, typer.Option(help="Accuracy that auto may lose against explicit.")] = 0.01,
    max_reply_tokens: Annotated[int, typer.Option(help="Limit on an answer without thinking.")] = 24,
    max_thinking_tokens: Annotated[int, typer.Option(help="Limit on thinking and answer.")] = 1024,
    seed: Seed = 1,
) -> None:
    """Fit the probe, calibrate the router, and write both into the bundle."""
    from reasoning_net.stages.fit import FitConfig, main

    with one_sentence(bundle):
        config = FitConfig(
            model, bundle, TaskSpec(data, preset, columns, whole), n=n, explicit_questions=explicit_questions, samples=samples,
            temperature=temperature, top_p=top_p, hidden_size=hidden_size, max_loss=max_loss,
            features=tuple(filter(None, features.split(","))), layers=_numbers(layers, "--layers"),  # type: ignore[arg-type]
            max_reply_tokens=max_reply_tokens, max_thinking_tokens=max_thinking_tokens, seed=seed,
        )  # fmt: skip
        typer.echo(json.dumps(main(config), indent=2))


Url = Annotated[str, typer.Option(help="The server.")]
ExplicitShare = Annotated[float | None, typer.Option(help="Share of questions that are thought through in text.")]
AccuracyFloor = Annotated[float | None, typer.Option(help="The cheapest setting that is right this often.")]
MeanTokens = Annotated[float | None, typer.Option(help="The best setting that generates no more tokens a question.")]


@router.command()
def calibrate(
    bundle: Annotated[Path, typer.Option(help="With a probe; gets the setting.")],
    explicit_share: ExplicitShare = None,
    accuracy_floor: AccuracyFloor = None,
    mean_tokens: MeanTokens = None,
    p95_seconds: Annotated[float | None, typer.Option(help="The best whose slowest twentieth starts here; with --url.")] = None,
    url: Annotated[str | None, typer.Option(help="A running server of this base, where seconds are measured.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once while seconds are measured.")] = 8,
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
) -> None:
    """Set what auto is to reach: one target, for which the price of a token is found."""
    from reasoning_net.stages.calibrate import CalibrateConfig, main

    with one_sentence(bundle):
        target = _target(
            explicit_share=explicit_share, accuracy_floor=accuracy_floor, mean_tokens=mean_tokens, p95_seconds=p95_seconds
        )
        if target is None:
            raise fail("give one of --explicit-share, --accuracy-floor, --mean-tokens, --p95-seconds")
        config = CalibrateConfig(bundle, target, url, concurrency=concurrency, task=TaskSpec(data, preset, columns, False))
        try:
            typer.echo(json.dumps(main(config), indent=2))
        except httpx.HTTPError as error:
            raise fail(f"{url}: {error!r}") from None


@router.command()
def replay(
    log: Annotated[Path, typer.Argument(help="Decision log of a server (LATENTSERVE_DECISION_LOG).")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it served.")] = DEMO_BUNDLE,
    policy: Annotated[str | None, typer.Option(help="By name. Default: utility.")] = None,
    explicit_share: ExplicitShare = None,
    accuracy_floor: AccuracyFloor = None,
    mean_tokens: MeanTokens = None,
) -> None:
    """What another policy, or another setting, would have decided on logged traffic."""
    from reasoning_net.stages.replay import ReplayConfig, main
    from router.router import Options

    with one_sentence():
        _target(explicit_share=explicit_share, accuracy_floor=accuracy_floor, mean_tokens=mean_tokens)
        options = Options(policy=policy, explicit_share=explicit_share, accuracy_floor=accuracy_floor, mean_tokens=mean_tokens)
        typer.echo(json.dumps(main(ReplayConfig(log, bundle, options)), indent=2))


@router.command("eval")
def evaluate(
    output: Annotated[Path, typer.Option(help="Directory for the tables, figures and plots.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that the server serves.")] = DEMO_BUNDLE,
    url: Url = "http://127.0.0.1:8000",
    data: Data = "demo",
    preset: Preset = None,
    columns: Columns = "",
    whole: Whole = False,
    n: Annotated[int, typer.Option(help="Held-out questions.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 31,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
) -> None:
    """Accuracy against cost of every policy, beside single modes, random mixes and an oracle."""
    from reasoning_net.stages.evaluate_router import RouterEvalConfig, main

    with one_sentence(output):
        task = TaskSpec(data, preset, columns, whole)
        config = RouterEvalConfig(bundle, url, output, task, n=n, seed=seed, concurrency=concurrency)
        try:
            typer.echo(asyncio.run(main(config)))
        except httpx.HTTPError as error:
            raise fail(f"{url}: {error!r}") from None


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise fail(f"{option} takes whole numbers, separated by commas, not {text!r}") from None


def _target(**asked: float | None) -> "Target | None":
    """The one target that was asked for; None when there is none."""
    from router.calibration import Target

    given = {name: value for name, value in asked.items() if value is not None}
    try:
        return Target(**given) if given else None
    except ValidationError as error:
        raise fail("; ".join(e["msg"] for e in error.errors())) from None


def bundle(
    output: Annotated[Path, typer.Option(help="Where the bundle goes.")],
    model: Model = str(DEMO_MODEL),
    net: Annotated[
        Path | None, typer.Option(help="Output of `train sft` or `train grpo`; without it a bundle for routing alone.")
    ] = None,
    num_latent_tokens: Annotated[int, typer.Option(help="Latents per question in serving.")] = 16,
    layout: LayoutFile = None,
    reasoning_parser: Annotated[str, typer.Option(help="vLLM's reasoning parser for the base.")] = "qwen3",
    trained_on: Annotated[str, typer.Option(help="A note for whoever reads bundle.json.")] = "demo",
    check: Annotated[bool, typer.Option(help="Start the engine and compare it with what training saw.")] = True,
) -> None:
    """Pack a network and its layout, check it against the engine, and print what a server will need."""
    from reasoning_net.frozen import FrozenBase
    from reasoning_net.stages.pack import pack
    from reasoning_net.stages.sft import load_net

    with one_sentence(output):
        network, packed_layout = load_net(net) if net else (None, FrozenBase(model).layout(layout))
        packed = pack(
            model, output, packed_layout, net=network, num_latent_tokens=num_latent_tokens, reasoning_parser=reasoning_parser,
            trained_on=trained_on,
        )  # fmt: skip
        report: dict[str, Any] = {"bundle": str(output), "fingerprint": packed.fingerprint()}
        if check:
            from server.check import check_bundle

            settings = Settings(model=model, bundle=str(output), device=_device())
            report |= check_bundle(settings, packed)
        typer.echo(json.dumps(report, indent=2))


def _one_of(value: str, option: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise fail(f"{option} must be one of {', '.join(allowed)}, not {value!r}")
    return value
