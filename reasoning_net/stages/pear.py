"""Shorter chains by an adapter on the base (PEAR, 2510.08026): answers are rewarded for thinking with little entropy.

    latentserve train pear --output runs/brief
    latentserve serve --enable-lora --lora-modules demo:brief=runs/brief

GRPO on whole explicit answers. A right one gets min(1, 1 − max(0, H̄_think − α · H̄_answer)), with the mean entropies of the
chain's and of the answer's tokens; a wrong one a tenth where its thinking ended, else nothing. The paper trains all of the
base; we train a LoRA adapter, so the base and every bundle that was made for it stay as they are. Rollouts run in
transformers: the policy changes with every step.
"""

import itertools
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.lora import Adapter
from reasoning_net.options import Flat, LayoutFile, Model, Optimiser, Questions, Seed
from reasoning_net.padding import padded
from reasoning_net.policy import Objective, Seen
from reasoning_net.rollouts import Reply, Sampling, TransformersRollouts
from reasoning_net.shaping import Shapings, group_advantages
from reasoning_net.stages.grpo import GrpoOptimizer, GrpoSampling
from reasoning_net.tasks import Example, Task, TaskSpec
from reasoning_net.training import Optimizer, Run, training_device

FORMAT_SCORE = 0.1
_OBJECTIVE = Objective(clip=0.2)


@dataclass(frozen=True, slots=True)
class PearSampling(GrpoSampling):
    max_tokens: PositiveInt = 512
    """Limit on thinking and answer."""
    temperature: PositiveFloat = 1.0
    """Of the rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PearConfig:
    output: Path
    """Where the adapter goes, in PEFT's format; a run found there is resumed."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    layout: LayoutFile = None
    steps: PositiveInt = 100
    """Steps, each on fresh rollouts."""
    questions: PositiveInt = 8
    """Questions a step."""
    sampling: Annotated[PearSampling, Flat] = field(default_factory=PearSampling)
    micro_batch: PositiveInt = 8
    """Questions whose gradients are computed together."""
    rank: PositiveInt = 8
    """Of the adapter."""
    entropy_weight: NonNegativeFloat = 1.0
    """α: how much of the answer's entropy the chain's may have. The paper: 1 is best."""
    evaluate_on: PositiveInt = 64
    """Validation questions, answered greedily at the end."""
    seed: Seed = 0
    optimizer: Annotated[GrpoOptimizer, Optimiser] = field(default_factory=GrpoOptimizer)


def main(config: PearConfig) -> dict[str, Any]:
    """Train, resuming where an earlier run of the same output stopped; returns accuracy and tokens, before and after."""
    torch.manual_seed(config.seed)
    task, base = config.task.load(), FrozenBase(config.model, training_device())
    layout = base.layout(config.layout).token_ids(base.tokenizer)
    if layout.end_of_thinking is None:
        raise StageError("PEAR weighs a chain's entropy against its answer's, and this base has no tags that tell them apart.")
    validation = list(itertools.islice(task.examples(config.seed, "validation"), config.evaluate_on))
    before = greedy(base, layout, task, validation, config)
    adapter = Adapter(base.model, config.rank, 2.0 * config.rank)
    optimizer = Optimizer(adapter, config.optimizer)
    run = Run(config.output / "run", adapter, optimizer, config.steps, "pear")
    for step in run.steps(save_every=10):
        figures = learn(base, layout, optimizer, task, config, step)
        run.report(step, figures, {}, every=1)
        if (step + 1) % 10 == 0:
            adapter.save(config.output, config.model)
    adapter.save(config.output, config.model)
    result = {"before": before, "after": greedy(base, layout, task, validation, config)}
    (config.output / "validation.json").write_text(json.dumps(result))
    return result


def greedy(base: FrozenBase, layout: LayoutIds, task: Task, examples: list[Example], config: PearConfig) -> dict[str, float]:
    """Accuracy and mean tokens of explicit answers."""
    sampling = Sampling(max_tokens=config.sampling.max_tokens)
    replies = [reply for (reply,) in explicit(base, layout, examples, sampling)]
    right = sum(is_right(reply, one, task, layout) for reply, one in zip(replies, examples, strict=True))
    return {"accuracy": right / len(examples), "tokens": sum(len(reply.token_ids) for reply in replies) / len(examples)}


def explicit(base: FrozenBase, layout: LayoutIds, examples: list[Example], sampling: Sampling) -> list[list[Reply]]:
    prompts = [[*base.prompt_ids(example.messages), *layout.explicit] for example in examples]
    with parametrize.cached():  # the adapter is added to the weights once, and not for every token
        return TransformersRollouts(base, layout).from_tokens(prompts, sampling)


def is_right(reply: Reply, example: Example, task: Task, layout: LayoutIds) -> bool:
    _, answer = layout.split(reply.text)
    return answer is not None and task.is_correct(answer, example.answer)


def pear_reward(entropy: Tensor, thinks: Tensor, mask: Tensor, right: Tensor, ended: Tensor, weight: float) -> Tensor:
    """Of each rollout, (R,), from the entropy of its tokens (R, Y), which of them are of the chain, and whether it is right."""

    def mean(which: Tensor) -> Tensor:
        return (entropy * which).sum(1) / which.sum(1).clamp(min=1)

    excess = (mean(mask & thinks) - weight * mean(mask & ~thinks)).clamp(min=0)
    return torch.where(right, (1 - excess).clamp(max=1), FORMAT_SCORE * ended.float())


def thinking_mask(tokens: Tensor, end: list[int]) -> Tensor:
    """Which tokens (R, Y) come before the end of thinking, (R, Y) bool; all of them where it does not come."""
    if tokens.shape[1] < len(end):
        return torch.ones_like(tokens, dtype=torch.bool)
    starts = tokens.unfold(1, len(end), 1).eq(torch.tensor(end, device=tokens.device)).all(-1)
    return pad(starts, (0, len(end) - 1)).cumsum(1) == 0


def learn(
    base: FrozenBase, layout: LayoutIds, optimizer: Optimizer, task: Task, config: PearConfig, step: int
) -> dict[str, float]:  # fmt: skip
    """One update on fresh rollouts: the first of a batch, so its ratio is 1."""
    rng = random.Random(f"{config.seed}-{step}")
    stream = (example for example in task.examples(rng.getrandbits(32), "train") if example.answer)
    examples = list(itertools.islice(stream, config.questions))
    sampling = replace(config.sampling, seed=config.seed * 100_003 + step)
    groups = explicit(base, layout, examples, sampling)
    parts = [range(at, min(at + config.micro_batch, len(groups))) for at in range(0, len(groups), config.micro_batch)]
    replies = [reply for group in groups for reply in group]
    tokens = padded([reply.token_ids for reply in replies]).to(base.device)  # (R, Y)

    def look(questions: range) -> tuple[Seen, slice]:
        rows = slice(questions.start * sampling.copies, questions.stop * sampling.copies)
        asked = examples[questions.start : questions.stop]
        return _look(base, layout, asked, tokens[rows], sampling), rows

    with torch.no_grad():
        entropy = torch.cat([look(part)[0].entropy for part in parts])
    mask = tokens != -100
    thinks = thinking_mask(tokens, base.tokenizer.encode(layout.end_of_thinking or "", add_special_tokens=False))
    each = [example for example in examples for _ in range(sampling.copies)]
    right = torch.tensor(
        [is_right(reply, one, task, layout) for reply, one in zip(replies, each, strict=True)], device=base.device
    )
    ended = torch.tensor([layout.split(reply.text)[1] is not None for reply in replies], device=base.device)
    rewards = pear_reward(entropy, thinks, mask, right, ended, config.entropy_weight)
    shape = len(examples), sampling.copies
    advantages = group_advantages(rewards.view(shape), [[None] * sampling.copies] * len(examples), mask.sum(1).view(shape))
    for part in parts:
        seen, rows = look(part)
        question = torch.zeros(len(seen.log_probs), device=base.device)
        shown = seen.tokens(None, advantages.advantages.flatten()[rows], mask[rows], question)
        loss, _, _ = _OBJECTIVE.loss(seen, seen.log_probs.detach(), shown, _OBJECTIVE.shaped(shown, 0.0))
        (loss * len(part) / len(examples)).backward()
    optimizer.step(step, step / config.steps)
    return {
        "reward": float(rewards.mean()),
        "right": float(right.float().mean()),
        "tokens": float(mask.sum(1).float().mean()),
        "entropy of thinking": float(entropy[mask & thinks].mean()),
    }


def _look(base: FrozenBase, layout: LayoutIds, examples: list[Example], tokens: Tensor, sampling: Sampling) -> Seen:
    """What the base with its adapter makes of rollouts, K of each question; its reading of the question has gradients, too."""
    question = torch.arange(len(examples), device=base.device).repeat_interleave(sampling.copies)
    prompts = padded([base.prompt_ids(example.messages) for example in examples], on_the_left=True).to(base.device)
    opened = torch.tensor(layout.explicit, dtype=torch.long, device=base.device)
    inputs = torch.cat([prompts, opened.expand(len(prompts), -1)], dim=1)
    read, last = inputs[:, :-1], inputs[question, -1:]  # the last token predicts the first that is written
    prompt = base.read_embeddings(base.embed(read.clamp(min=0)), read != -100)
    logits = base.answer_logits(prompt.rows(question), base.embed(last), tokens.clamp(min=0))
    return Seen.of(logits.float() / sampling.temperature, tokens, question, Shapings())
