"""Stage 1 of Latent Reasoning Tuning: train the reasoning network on questions and replies, the base frozen.

    latentserve train sft --model runs/base --output runs/sft

Loss: −log P_θ(Y | [X, z]), z = G_φ(H_X) (section 3.2 of the paper); only φ is trained. Where we differ:

- A curriculum over the task's levels: the next opens when the replies of the hardest open one are likely enough, or on time.
- In the later part of the run half of the questions draw their number of latents, so that one network serves several budgets.
- Where a task knows the chain's steps, an auxiliary loss reads them off the first latents for part of the run.
- A share of the batches has the rest of the chain to write (`--rest-share`), so that the base can think on after the latents; a
  share learns from what the base writes after its own chain (`--distill-share`), on replies that are sampled after the latents.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

import torch
from accelerate import Accelerator
from cyclopts import Parameter
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from reasoning_net.batches import POOL_BATCHES, Batch, Batches, Kind, Milestones, Plan
from reasoning_net.config import Conditioner, ReasoningNetConfig
from reasoning_net.curriculum import Curriculum
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.graphs import Graphed, compile_parts
from reasoning_net.layout import Layout
from reasoning_net.losses import losses
from reasoning_net.model import ReasoningNet
from reasoning_net.options import LayoutFile, Model, Optimiser, Questions, Seed, Share, Workers
from reasoning_net.precision import compute_dtype
from reasoning_net.selection import filtered, reply_filter, share_of
from reasoning_net.stages.fresh import new_network
from reasoning_net.tasks import LEARNT, Task, TaskSpec
from reasoning_net.training import Optimizer, OptimizerConfig, Run, averaged, drawn_ahead, duration, run_clock

_SELECT = "tip:0.5: of a distillation's tokens only the half that says most, as TIP scores them."
_FILTER = "0.01: leave out a data set's replies with a token that the base, after its own chain, would write less often (RSD)."
_FIGURES: dict[Kind, str] = {"reply": "nll", "rest": "nll of the rest", "distill": "divergence"}


@dataclass(frozen=True, slots=True)
class SftOptimizer(OptimizerConfig):
    """Lower peaks than the base's own training."""

    muon_lr: PositiveFloat = 0.015
    adamw_lr: PositiveFloat = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    """The defaults train the demo's network; `latentserve adapt` finds those of another base (`recipe.py`)."""

    output: Path
    """Where the network goes; a run found there is resumed."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=lambda: TaskSpec(LEARNT))
    layout: LayoutFile = None
    steps: PositiveInt = 4000
    """Optimiser steps."""
    seconds: PositiveFloat | None = None
    """Train for as long instead, however many steps that is: to compare recipes. The schedule then follows the clock."""
    processor_seconds: bool = False
    """Count the seconds of the processor, all its cores together: to compare recipes on a machine that others use, too."""
    batch_size: PositiveInt = 64
    """Questions a batch."""
    accumulate: PositiveInt = 1
    """Batches a step: as many gradients are added up before an update."""
    num_latents: PositiveInt = 16
    """Latents per question until the nested part of the run."""
    max_latents: PositiveInt = 256
    """The most latents that the network can compute."""
    min_latents: PositiveInt = 16
    """The fewest that are drawn in the nested part of the run."""
    num_rounds: PositiveInt = 1
    """The most rounds that the network thinks in; training draws from one to these."""
    nested_from: Share = 0.4
    """Share of the steps after which half of the questions draw their number of latents, and a quarter of the batches have the
    most."""
    second_round: bool = False
    """The network thinks again with what the base made of its latents. For studies: the engine does not serve it."""
    rest_share: Share = 0.0
    """Share of the batches whose target is the second half of the chain and the reply: for latent, then explicit."""
    distill_share: Share = 0.0
    """Share of the batches that learn from what the base writes after its own chain, on replies sampled after the latents."""
    select: Annotated[str | None, Parameter(help=_SELECT)] = None
    filter_replies: Annotated[float | None, Field(gt=0, lt=1), Parameter(help=_FILTER)] = None
    conditioner: Conditioner = "all+embeddings"
    """What the network reads. last: the final position, as in the paper; all; all+embeddings."""
    init: Path | None = None
    """A trained network to go on from, with its architecture and its layout: the output of an earlier run."""
    backbone: str | None = None
    """Pre-trained Qwen3 to start from (Qwen3-Embedding-0.6B in the paper), by path or id."""
    hidden_size: PositiveInt = 160
    """Width of a fresh network."""
    num_layers: PositiveInt = 7
    """Depth of a fresh network."""
    milestones: Milestones = "results"
    """What an auxiliary loss reads off the first latents, where the task knows it: the results of the chain's steps; or the
    steps, three latents each: operator, operand, result."""
    milestone_weight: NonNegativeFloat = 0.5
    """Of the auxiliary loss."""
    milestones_until: Share = 0.6
    """Share of the steps that it is used for."""
    start_level: PositiveInt = 2
    """The hardest level that is open at the start."""
    next_level_nll: NonNegativeFloat = 0.5
    """The next level opens when the mean NLL (nats per reply) at the hardest open one is below this."""
    all_levels_by: Share = 0.5
    """By this share of the steps every level is open, however likely its replies are."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer questions are left out, and counted."""
    max_reply_tokens: PositiveInt = 512
    """Longer replies are left out, and counted."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Save an exponential moving average with this decay; 0: off."""
    checkpointing: bool = False
    """Recompute the base's activations: less memory, more time."""
    compiled: bool = False
    """Compile norms and MLPs (`torch.compile`): for small networks on a fast GPU."""
    save_every: Annotated[int, Field(gt=0, multiple_of=POOL_BATCHES)] = 200
    """Steps between two checkpoints; a multiple of 8, so that a resumed run draws the same batches."""
    seed: Seed = 0
    workers: Workers = 6
    optimizer: Annotated[SftOptimizer, Optimiser] = field(default_factory=SftOptimizer)


def first_network(config: SftConfig, base: FrozenBase) -> tuple[ReasoningNet, Layout]:
    """What training starts from: a fresh network, a pre-trained one, or one that an earlier run has trained."""
    if config.init is not None:
        if config.backbone or config.layout:
            raise StageError("--init brings its own architecture and layout: leave --backbone and --layout out.")
        net, layout = load_net(config.init)
        if net.config.base_hidden_size != base.hidden_size:
            raise StageError(f"{config.init} is for a base {net.config.base_hidden_size} wide, not {base.hidden_size}.")
        return net.to(base.device).train(), layout
    layout = base.layout(config.layout)
    layout.check_latents()
    return new_network(config, base), layout


def main(config: SftConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped; writes `reasoning_net.safetensors`."""
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    accelerator = Accelerator()
    if config.seconds and accelerator.num_processes > 1:
        raise StageError("--seconds is for one process: several would stop at different steps. Use --steps.")
    share = share_of(config.select)
    if share is not None and not config.distill_share:
        raise StageError("--select is of the tokens of a distillation: say --distill-share, too.")
    task, device = config.task.load(), accelerator.device
    base = FrozenBase(config.model, device, compute_dtype(device), checkpointing=config.checkpointing)
    net, layout = first_network(config, base)
    ids = layout.token_ids(base.tokenizer)
    if config.filter_replies is not None:
        filtered(task, reply_filter(base, ids, config.filter_replies, config.output / "replies.json"))
    optimizer = Optimizer(net, config.optimizer)
    average = averaged(net, config.average_decay)
    trained = net if average is None else cast("ReasoningNet", average.module)  # what is saved
    curriculum = Curriculum(task.levels, config.start_level, config.next_level_nll)
    run = Run(
        config.output / "run", net, optimizer, config.steps, "sft", average=average, is_main=accelerator.is_main_process,
        seconds=config.seconds, clock=run_clock(processor=config.processor_seconds),
    )  # fmt: skip
    if run.extra:
        curriculum.load_state_dict(run.extra["curriculum"])
    if config.compiled:
        compile_parts(net, base.model)
    think = accelerator.prepare_model(net) if accelerator.num_processes > 1 else net

    def learn(batch: Batch) -> tuple[Tensor, Tensor]:
        nll, hints = losses(think, base, ids, batch, second_round=net.config.second_round, share=share)
        accelerator.backward((nll.mean() + batch.hint_weight * hints) / config.accumulate)
        return nll.detach(), hints.detach()

    is_graphed = device.type == "cuda" and accelerator.num_processes == 1 and not config.checkpointing
    replayed = Graphed(learn, net) if is_graphed else learn
    stream: Iterator[Batch] | None = None
    is_first = True
    if accelerator.is_main_process:
        tqdm.write(summary(config, task, net), file=sys.stderr)
    for step in run.steps(config.save_every, multiple=POOL_BATCHES):
        if stream is None:
            seed, first = f"{config.seed}-{accelerator.process_index}", step * config.accumulate
            drawn = Batches(task, base.tokenizer, ids, curriculum, plan(config, net.config, device), seed=seed, first=first)
            stream = drawn_ahead(drawn, device, config.workers)
        curriculum.share = share = run.share(step)
        curriculum.open_at_least(int(task.levels * share / max(1e-6, config.all_levels_by)))
        for _ in range(config.accumulate):
            batch, started = next(stream), time.perf_counter()
            nll, hints = (learn if batch.kind == "distill" else replayed)(batch)  # sampling is no graph
            if batch.kind == "reply":
                curriculum.update(batch.levels.tolist(), nll.tolist())
            if is_first and accelerator.is_main_process:
                tqdm.write(first_estimate(config, time.perf_counter() - started, config.steps - step), file=sys.stderr)
            is_first = False
        optimizer.step(step, share)
        if average is not None:
            average.update_parameters(net)
        run.extra = {"curriculum": curriculum.state_dict()}
        run.report(step, {_FIGURES[batch.kind]: float(nll.mean()), "hints": float(hints)}, {"level": curriculum.open})
        if (step + 1) % config.save_every == 0 and accelerator.is_main_process:
            save(trained, layout, config.output, config.task.name)
    if accelerator.is_main_process:
        save(trained, layout, config.output, config.task.name)
    accelerator.wait_for_everyone()  # a process that leaves early can leave the others waiting for it
    accelerator.end_training()


def summary(config: SftConfig, task: Task, net: ReasoningNet) -> str:
    """What is going to be trained, and on how much."""
    size, rows = net.config, task.size("train")
    questions = "questions are made as they are needed" if rows is None else f"{rows} rows"
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return (
        f"sft: {questions}; the network is {size.hidden_size} wide and {size.num_hidden_layers} layers deep, "
        f"{parameters / 1e6:.1f} million parameters; a step is {config.accumulate} x {config.batch_size} questions."
    )


def first_estimate(config: SftConfig, seconds: float, steps: int) -> str:
    """Of the time, from a first batch, which is slower than the others."""
    said, a_step = f"sft: the first batch took {seconds:.1f} s", seconds * config.accumulate
    return (
        f"{said}."
        if config.seconds
        else f"{said}, a step about {a_step:.1f} s, {steps} steps at most {duration(a_step * steps)}."
    )


def plan(config: SftConfig, net: ReasoningNetConfig, device: torch.device) -> Plan:
    """How batches are drawn. On a GPU shapes come again, for its graphs."""
    return Plan(
        batch_size=config.batch_size,
        num_latents=config.num_latents,
        max_latents=net.num_latent_tokens,
        min_latents=config.min_latents,
        num_rounds=net.num_rounds,
        nested_from=config.nested_from,
        rest_share=config.rest_share,
        distill_share=config.distill_share,
        milestones=config.milestones,
        hint_weight=config.milestone_weight,
        hinted_until=config.milestones_until,
        max_prompt_tokens=config.max_prompt_tokens,
        max_reply_tokens=config.max_reply_tokens,
        pad_to=64 if device.type == "cuda" else 1,
    )


def save(net: ReasoningNet, layout: Layout, output: Path, trained_on: str = "") -> None:
    """Write the network's weights in bf16, its architecture, its layout, and the name of what it was trained on."""
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in net.state_dict().items()}
    output.mkdir(parents=True, exist_ok=True)
    save_file(weights, output / "reasoning_net.safetensors")
    (output / "config.json").write_text(net.config.model_dump_json(indent=2))
    (output / "layout.json").write_text(layout.model_dump_json(indent=2))
    (output / "trained_on.txt").write_text(f"{trained_on}\n")


def read_trained_on(output: Path) -> str:
    """The name that `save` wrote; empty where it wrote none."""
    path = output / "trained_on.txt"
    return path.read_text().strip() if path.is_file() else ""


def load_net(output: Path) -> tuple[ReasoningNet, Layout]:
    """The network and layout that `save` wrote; raises `StageError` when there is none."""
    if not (output / "config.json").is_file():
        raise StageError(f"{output} has no reasoning network: train one with `latentserve train sft --output {output}`.")
    config = ReasoningNetConfig.model_validate_json((output / "config.json").read_text())
    net = ReasoningNet(config)
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(output / "reasoning_net.safetensors").items()})
    return net.eval(), Layout.read(output / "layout.json")
