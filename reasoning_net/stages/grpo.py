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
from reasoning_net.latent_noise import drawn, log_density
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Flat, Model, Optimiser, Questions, Seed, Share, commas
from reasoning_net.padding import padded
from reasoning_net.policy import Objective, Seen
from reasoning_net.precision import autocast, compute_dtype
from reasoning_net.rollouts import Backend, Reply, Rollouts, Sampling, greedy_accuracy, noisy_replies, start, think
from reasoning_net.shaping import Groups, Shapings, group_advantages
from reasoning_net.stages.sft import load_net, read_trained_on, save
from reasoning_net.tasks import LEARNT, Example, Task, TaskSpec, draw
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
    max_prompt_tokens: PositiveInt = 1024
    """Longer questions are left out."""
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
    """What the literature does to GRPO, with commas: seed[:α], d3s, 8020[:share], steer[:linear], tw, hapo, ppl[:α]; without
    labels: empo, spine. The README says what each is."""
    latent_noise: NonNegativeFloat = 0.0
    """Each rollout answers after latents of its own: noise of so many times their root mean square. 0: none."""
    latent_policy: bool = False
    """Also reinforce the noise of good rollouts, as a policy over latents."""
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
    sampled: int
    """Tokens of all rollouts, used or not."""
    noise: Tensor | None = None  # (R, N, d), what each rollout's latents had on top
    sigma: Tensor | None = None  # (R,)

    @property
    def mask(self) -> Tensor:
        return self.tokens != -100

    def part(self, questions: Tensor) -> tuple["_Batch", Tensor]:
        """The rollouts of consecutive questions, and which rows they are, (R,) bool."""
        rows = torch.isin(self.row_of, questions)
        noise, sigma = (None if one is None else one[rows] for one in (self.noise, self.sigma))
        part = _Batch(
            self.prompt.rows(questions), self.row_of[rows] - questions[0], self.tokens[rows], self.advantages[rows],
            self.sampled, noise, sigma,
        )  # fmt: skip
        return part, rows


def main(config: GrpoConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped; writes `reasoning_net.safetensors`."""
    objective = Objective(config.clip, config.clip_high, config.kl_weight, Shapings.named(config.shapings))
    if config.latent_policy and (config.inner_steps > 1 or not config.latent_noise):
        raise StageError("--latent-policy is for --latent-noise with --inner-steps 1: later updates have no ratio of latents.")
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
        batch, figures = roll_out(net, base, rollouts, task, objective.shapings, config, step)
        if batch is not None:
            figures |= learn(net, reference, base, ids, optimizer, batch, objective, config, step)
        run.report(step, figures, run.extra, every=1)
        if (step + 1) % config.save_every == 0:
            save(net, layout, config.output, trained_on)
    save(net, layout, config.output, trained_on)
    if config.evaluate_on:
        result = {"accuracy": accuracy(), "questions": config.evaluate_on}
        (config.output / "validation.json").write_text(json.dumps(result))


def roll_out(
    net: ReasoningNet, base: FrozenBase, rollouts: Rollouts, task: Task, shapings: Shapings, config: GrpoConfig, step: int
) -> tuple[_Batch | None, dict[str, float]]:
    """Replies to fresh questions, graded, as far as they teach something; with the step's figures."""
    rng = random.Random(f"{config.seed}-{step}")

    def fits(one: Example) -> bool:  # small talk, of level 0, has no answer that could be right or wrong
        can_learn = bool(one.answer or (shapings.label_free and one.level))
        return can_learn and len(base.prompt_ids(one.messages)) <= config.max_prompt_tokens

    examples = draw(task.examples(rng.getrandbits(32), "train"), config.questions, fits)
    prompts = [base.prompt_ids(example.messages) for example in examples]
    prompt = base.read(prompts)
    with torch.no_grad():
        latents = think(net, prompt, config.num_latents)
    seed = config.seed * 100_003 + step
    noise = drawn(latents, config.latent_noise, config.sampling.copies, seed) if config.latent_noise else None
    started = time.perf_counter()
    replies = noisy_replies(
        rollouts, prompts, latents, None if noise is None else noise[0], replace(config.sampling, seed=seed)
    )
    seconds = time.perf_counter() - started
    groups, right = reward(replies, examples, task, shapings)
    figures = {
        "reward": right,
        "groups without variance": float((~groups.used.any(1)).sum()),
        "rollouts a second": groups.rewards.numel() / seconds,
    }
    if shapings.label_free:
        figures["agreement"] = float(groups.rewards.nanmean())
    groups = shapings.groups(groups, step / config.steps)
    return batch_of(prompt, replies, groups, noise) if bool(groups.used.any()) else None, figures


def reward(replies: list[list[Reply]], examples: list[Example], task: Task, shapings: Shapings) -> tuple[Groups, float]:
    """Groups and the share of right answers: 1 for a right answer, 0 for a wrong one, or what a shaping gives instead;
    normalised within each group."""
    pairs = list(zip(replies, examples, strict=True))
    right = torch.tensor([[float(task.is_correct(reply.text, example.answer)) for reply in group] for group, example in pairs])
    answers = [[task.final_answer(reply.text) for reply in group] for group in replies]
    rewards = shapings.rewards(answers)
    lengths = torch.tensor([[len(reply.token_ids) for reply in group] for group in replies])
    return group_advantages(right if rewards is None else rewards, answers, lengths), float(right.mean())


def batch_of(
    prompt: Prompt, replies: list[list[Reply]], groups: Groups, noise: tuple[Tensor, Tensor] | None = None
) -> _Batch:  # fmt: skip
    device = prompt.mask.device
    rows = groups.used.nonzero()
    questions, row_of = rows[:, 0].unique(return_inverse=True)
    tokens = padded([replies[q][k].token_ids for q, k in rows.tolist()]).to(device)
    advantages = groups.advantages[groups.used]
    used = groups.used.to(device)
    drawn_noise, sigma = (None, None) if noise is None else (noise[0][used], noise[1][used.nonzero()[:, 0]])
    return _Batch(
        prompt.rows(questions.to(device)), row_of.to(device), tokens, advantages.to(device), int(groups.lengths.sum()),
        drawn_noise, sigma,
    )  # fmt: skip


def learn(
    net: ReasoningNet, reference: ReasoningNet | None, base: FrozenBase, layout: LayoutIds, optimizer: Optimizer, batch: _Batch,
    objective: Objective, config: GrpoConfig, step: int,
) -> dict[str, float]:  # fmt: skip
    """`inner_steps` updates on one batch of rollouts. The first has ratio 1 by construction."""
    parts = torch.arange(len(batch.prompt.mask), device=base.device).split(config.micro_batch)
    shapings, progress = objective.shapings, step / config.steps

    @torch.no_grad()
    def whole() -> Seen:
        found = list[tuple[Seen, Tensor]]()
        for part in parts:
            micro, rows = batch.part(part)
            found.append((_look(net, base, layout, micro, shapings, config)[0], rows))
        return Seen.joined(*zip(*found, strict=True))

    before = whole().log_probs if config.inner_steps > 1 else None
    figures = dict.fromkeys(("kl", "clipped", "mean weight", "tokens used", "entropy of used tokens"), 0.0)
    for _ in range(config.inner_steps):
        together = None  # quantiles are of the whole batch
        if len(shapings) and len(parts) > 1:
            tokens = whole().tokens(before, batch.advantages, batch.mask, batch.row_of)
            together = objective.shaped(tokens, progress)
        for part in parts:
            micro, rows = batch.part(part)
            seen, latents = _look(net, base, layout, micro, shapings, config)
            with torch.no_grad():
                towards = _look(reference, base, layout, micro, shapings, config)[0] if reference else seen
            old = None if before is None else before[rows]
            tokens = seen.tokens(old, micro.advantages, micro.mask, micro.row_of)
            shaped = objective.shaped(tokens, progress) if together is None else together.rows(rows)
            loss, kl, clipped = objective.loss(seen, towards.log_probs.detach(), tokens, shaped)
            if config.latent_policy and micro.noise is not None and micro.sigma is not None:
                loss = loss - (micro.advantages * log_density(latents.float(), micro.noise, micro.sigma)).mean()
            share = float(micro.mask.sum() / batch.mask.sum()) if shapings.token_mean else len(micro.tokens) / len(batch.tokens)
            (loss * share).backward()
            used = shaped.weights > 0
            seen_figures = {
                "kl": kl,
                "clipped": clipped,
                "mean weight": float(shaped.weights.sum() / micro.mask.sum()),
                "entropy of used tokens": float(tokens.entropy[used].mean()) if bool(used.any()) else 0.0,
            }
            for name, figure in seen_figures.items():
                figures[name] += figure * share / config.inner_steps
            figures["tokens used"] += float(used.sum()) / batch.sampled / config.inner_steps
        optimizer.step(step, step / config.steps)
    return figures


def _look(
    net: ReasoningNet, base: FrozenBase, layout: LayoutIds, batch: _Batch, shapings: Shapings, config: GrpoConfig
) -> tuple[Seen, Tensor]:
    """What the network makes of the replies at the sampling temperature, and each one's latents (R, N, d), without noise."""
    latents = think(net, batch.prompt, config.num_latents)[batch.row_of]
    noisy = latents if batch.noise is None else latents + batch.noise
    with autocast(base.device):
        logits = base.answer_logits(batch.prompt.rows(batch.row_of), base.prefix(layout, noisy), batch.tokens.clamp(min=0))
    seen = Seen.of(logits.float() / (config.sampling.temperature or 1.0), batch.tokens, batch.row_of, shapings)
    return seen, latents
