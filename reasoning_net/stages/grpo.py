"""Stage 2 of Latent Reasoning Tuning: reinforce the latents whose answers are right (algorithm 1 of the paper).

    latentserve train grpo --model runs/base --init runs/sft --output runs/grpo

For every question K replies are sampled from P_θ(· | X, z); their rewards, normalised within the group, weigh the clipped
ratio of each reply's tokens; a KL term holds the answers near those of the stage-1 network. Gradients go through the answer's
log-probabilities into φ alone. θ is frozen, so rollouts run on the vLLM engine and no weight is ever synced.
"""

import copy
import itertools
import json
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Flat, Model, Optimiser, Questions, Seed, Share, commas
from reasoning_net.padding import padded
from reasoning_net.precision import autocast, compute_dtype
from reasoning_net.rollouts import Backend, Reply, Rollouts, Sampling, greedy_accuracy, start, think
from reasoning_net.shaping import SHAPINGS, Groups, group_advantages
from reasoning_net.stages.sft import load_net, read_trained_on, save
from reasoning_net.tasks import LEARNT, Example, Task, TaskSpec
from reasoning_net.training import Optimizer, OptimizerConfig, Run, training_device


@dataclass(frozen=True, slots=True)
class GrpoSampling(Sampling):
    """Of the rollouts."""

    max_tokens: PositiveInt = 24
    """Limit on a rollout. The paper: 2048."""
    temperature: NonNegativeFloat = 0.6
    """Of the rollouts."""
    top_p: Share = 0.95
    copies: Annotated[int, Field(ge=2), Parameter(name="--rollouts", parse=True)] = 8
    """Rollouts per question (K)."""


@dataclass(frozen=True, slots=True)
class GrpoOptimizer(OptimizerConfig):
    """Small steps: the network can already answer."""

    muon_lr: PositiveFloat = 1e-3
    adamw_lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 5
    schedule: Literal["linear", "cosine"] = "cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoConfig:
    """Defaults as in the paper, but for sizes that suit the demo; the paper does not state ε."""

    init: Path
    """Output of `train sft`: where to start, and the reference of the KL term."""
    output: Path
    """Where the network goes; a run found there is resumed."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=lambda: TaskSpec(LEARNT))
    steps: PositiveInt = 100
    """Steps, each on fresh rollouts."""
    questions: PositiveInt = 64
    """Questions a step (Q). The paper: 1,024."""
    num_latents: PositiveInt = 16
    """Latents per question."""
    sampling: Annotated[GrpoSampling, Flat] = field(default_factory=GrpoSampling)
    inner_steps: PositiveInt = 1
    """Updates per batch of rollouts."""
    micro_batch: PositiveInt = 64
    """Questions whose gradients are computed together."""
    clip: PositiveFloat = 0.2
    """ε of the clipped ratio."""
    clip_high: PositiveFloat | None = None
    """Upper ε where it differs (clip-higher, as in DAPO)."""
    kl_weight: NonNegativeFloat = 2e-3
    """β of the KL to the stage-1 network; 0: no reference is computed, a fifth faster."""
    shapings: Annotated[tuple[str, ...], Parameter(name="--shaping"), commas(str)] = ()
    """seed (SEED-GRPO), d3s (down-sampling of rollouts), or both with a comma."""
    backend: Backend = "vllm"
    """Where rollouts run: vllm, or transformers as the reference."""
    evaluate_every: PositiveInt = 25
    """Steps between two looks at validation questions."""
    evaluate_on: NonNegativeInt = 300
    """Validation questions, answered greedily; 0: none."""
    save_every: PositiveInt = 10
    """Steps between two checkpoints."""
    seed: Seed = 0
    optimizer: Annotated[GrpoOptimizer, Optimiser] = field(default_factory=GrpoOptimizer)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one step learns from. Rows are the used rollouts only."""

    prompt: Prompt
    """Of the questions with a used rollout, read once."""
    row_of: Tensor  # (R,) question of each rollout
    tokens: Tensor  # (R, Y), −100 where there is none
    advantages: Tensor  # (R,)


def main(config: GrpoConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped; writes `reasoning_net.safetensors`."""
    unknown = set(config.shapings) - set(SHAPINGS)
    if unknown:
        raise StageError(f"There is no shaping {', '.join(sorted(unknown))}. There are: {', '.join(SHAPINGS)}.")
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    device = training_device()
    task = config.task.load()
    net, layout = load_net(config.init)
    trained_on = ", ".join(dict.fromkeys(filter(None, [read_trained_on(config.init), config.task.name])))
    base = FrozenBase(config.model, device, compute_dtype(device))
    ids = layout.token_ids(base.tokenizer)
    rollouts = start(config.backend, base, config.model, ids)
    net = net.to(device)
    reference = copy.deepcopy(net).requires_grad_(False) if config.kl_weight else None
    optimizer = Optimizer(net, config.optimizer)
    run = Run(config.output / "run", net, optimizer, config.steps, "grpo")
    validation = list(itertools.islice(task.examples(config.seed, "validation"), config.evaluate_on))

    def accuracy() -> float:
        return greedy_accuracy(net, base, rollouts, task, validation, config.num_latents, config.sampling.max_tokens)

    for step in run.steps(config.save_every):
        if config.evaluate_on and step % config.evaluate_every == 0:
            run.extra = {"accuracy": accuracy()}
        batch, figures = roll_out(net, base, rollouts, task, config, step)
        if batch is not None:
            figures |= learn(net, reference, base, ids, optimizer, batch, config, step)
        run.report(step, figures, run.extra, every=1)
        if (step + 1) % config.save_every == 0:
            save(net, layout, config.output, trained_on)
    save(net, layout, config.output, trained_on)
    if config.evaluate_on:
        result = {"accuracy": accuracy(), "questions": config.evaluate_on}
        (config.output / "validation.json").write_text(json.dumps(result))


def roll_out(
    net: ReasoningNet, base: FrozenBase, rollouts: Rollouts, task: Task, config: GrpoConfig, step: int
) -> tuple[_Batch | None, dict[str, float]]:
    """Replies to fresh questions, graded, as far as they teach something; with the step's figures."""
    rng = random.Random(f"{config.seed}-{step}")
    # Small talk has no answer that could be right or wrong.
    graded = (example for example in task.examples(rng.getrandbits(32), "train") if example.answer)
    examples = list(itertools.islice(graded, config.questions))
    prompts = [base.prompt_ids(example.messages) for example in examples]
    prompt = base.read(prompts)
    with torch.no_grad():
        latents = think(net, prompt, config.num_latents)
    started = time.perf_counter()
    replies = rollouts.from_latents(prompts, latents, replace(config.sampling, seed=config.seed * 100_003 + step))
    seconds = time.perf_counter() - started
    groups = reward(replies, examples, task)
    figures = {
        "reward": float(groups.rewards.mean()),
        "groups without variance": float((~groups.used.any(1)).sum()),
        "rollouts a second": groups.rewards.numel() / seconds,
    }
    for name in config.shapings:
        groups = SHAPINGS[name](groups)
    return batch_of(prompt, replies, groups) if bool(groups.used.any()) else None, figures


def reward(replies: list[list[Reply]], examples: list[Example], task: Task) -> Groups:
    """1 for a right answer, 0 for a wrong one, normalised within each group."""
    pairs = list(zip(replies, examples, strict=True))
    rewards = [[float(task.is_correct(reply.text, example.answer)) for reply in group] for group, example in pairs]
    return group_advantages(torch.tensor(rewards), [[task.final_answer(reply.text) for reply in group] for group, _ in pairs])


def batch_of(prompt: Prompt, replies: list[list[Reply]], groups: Groups) -> _Batch:
    device = prompt.mask.device
    rows = groups.used.nonzero()
    questions, row_of = rows[:, 0].unique(return_inverse=True)
    tokens = padded([replies[q][k].token_ids for q, k in rows.tolist()]).to(device)
    advantages = groups.advantages[groups.used]
    return _Batch(prompt.rows(questions.to(device)), row_of.to(device), tokens, advantages.to(device))


def learn(
    net: ReasoningNet, reference: ReasoningNet | None, base: FrozenBase, layout: LayoutIds, optimizer: Optimizer, batch: _Batch,
    config: GrpoConfig, step: int,
) -> dict[str, float]:  # fmt: skip
    """`inner_steps` updates on one batch of rollouts. The first has ratio 1 by construction."""
    with torch.no_grad():
        before = _log_probs(net, base, layout, batch, config) if config.inner_steps > 1 else None
    figures = {"kl": 0.0, "clipped": 0.0}
    for _ in range(config.inner_steps):
        for part in torch.arange(len(batch.prompt.mask), device=base.device).split(config.micro_batch):
            rows = torch.isin(batch.row_of, part)
            micro = _Batch(batch.prompt.rows(part), batch.row_of[rows] - part[0], batch.tokens[rows], batch.advantages[rows])
            log_probs = _log_probs(net, base, layout, micro, config)  # (R, Y)
            with torch.no_grad():
                towards = _log_probs(reference, base, layout, micro, config) if reference else log_probs.detach()
            old = log_probs.detach() if before is None else before[rows]
            loss, kl, clipped = grpo_loss(log_probs, old, towards, micro.tokens != -100, micro.advantages, config)
            weight = len(micro.tokens) / len(batch.tokens)
            (loss * weight).backward()
            figures["kl"] += kl * weight / config.inner_steps
            figures["clipped"] += clipped * weight / config.inner_steps
        optimizer.step(step, step / config.steps)
    return figures


def grpo_loss(
    log_probs: Tensor, old: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor, config: GrpoConfig
) -> tuple[Tensor, float, float]:
    """(loss, KL to the reference, share of clipped tokens) of rollouts (R, Y): the mean over each reply's tokens, then over R.

    The KL is Schulman's k3 estimator, as in GRPO.
    """
    ratio = (log_probs - old).exp()
    high = config.clip if config.clip_high is None else config.clip_high
    bounded = ratio.clamp(1 - config.clip, 1 + high)
    gain = torch.minimum(ratio * advantages[:, None], bounded * advantages[:, None])
    kl = (reference - log_probs).exp() - (reference - log_probs) - 1
    lengths = mask.sum(1)
    loss = -(((gain - config.kl_weight * kl) * mask).sum(1) / lengths).mean()
    clipped = ((ratio != bounded) & mask).sum() / mask.sum()
    return loss, float((kl.detach() * mask).sum() / mask.sum()), float(clipped)


def _log_probs(net: ReasoningNet, base: FrozenBase, layout: LayoutIds, batch: _Batch, config: GrpoConfig) -> Tensor:
    """log P(y_t | X, z, y_<t) at the sampling temperature, (R, Y); 0 where there is no token."""
    latents = think(net, batch.prompt, config.num_latents)
    with autocast(base.device):
        prefix = base.prefix(layout, latents[batch.row_of])
        logits = base.answer_logits(batch.prompt.rows(batch.row_of), prefix, batch.tokens.clamp(min=0))
    chosen = (logits.float() / (config.sampling.temperature or 1.0)).log_softmax(-1)
    values = chosen.gather(-1, batch.tokens.clamp(min=0)[..., None])[..., 0]
    return values.masked_fill(batch.tokens == -100, 0.0)
