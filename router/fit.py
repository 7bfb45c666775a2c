"""Fit the difficulty probe on a frozen base and, where the bundle has one, its reasoning network; choose the threshold.

    latentserve router fit --model runs/base --bundle runs/bundle

Labels are the greedy answers' correctness, in direct and in latent mode, on questions that no training saw. The probe and
the threshold become part of the bundle.
"""

import copy
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.rollouts import Sampling, VllmRollouts
from reasoning_net.tasks import Example, Task, TaskSpec
from router.policy import Thresholds
from router.probe import Probe, ProbeConfig

_FEATURES: tuple[str, ...] = ("last", "mean", "latents")


@dataclass(frozen=True, slots=True)
class Observations:
    """What the base (and the network) did on n questions."""

    features: dict[str, Tensor]  # name → (n, d)
    correct: dict[str, Tensor]  # mode → (n,) 0 or 1
    levels: Tensor  # (n,)
    prompt_tokens: Tensor  # (n,)


@torch.no_grad()
def observe(
    base: FrozenBase,
    net: ReasoningNet | None,
    layout: LayoutIds,
    task: Task,
    examples: list[Example],
    num_latents: int,
    max_reply_tokens: int = 24,
) -> Observations:
    """Answer every question greedily, directly and after latents, and keep the features that a probe may read."""
    prompt_ids = [base.prompt_ids(example.messages) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompt_ids[i]))
    features: dict[str, list[Tensor]] = {name: [] for name in (_FEATURES if net else _FEATURES[:2])}
    correct: dict[str, list[float]] = {"direct": [], "latent": []} if net else {"direct": []}
    reader = Probe(ProbeConfig(base_hidden_size=base.hidden_size, features=tuple(features)))
    for at in tqdm(range(0, len(order), 100), desc="observe"):
        batch = [examples[i] for i in order[at : at + 100]]
        ids = [prompt_ids[i] for i in order[at : at + 100]]
        prompt = base.read(ids)
        latents = net(prompt.hidden_states, prompt.embeddings, prompt.mask, num_latents) if net else None
        rows = reader.features(prompt.hidden_states.float(), prompt.mask, latents)
        for name, part in zip(features, rows.split(base.hidden_size, dim=1), strict=True):
            features[name].append(part)
        prefixes = {"direct": base.embed(torch.tensor([layout.direct])).expand(len(batch), -1, -1)}
        if latents is not None:
            prefixes["latent"] = base.prefix(layout, latents)
        for mode, prefix in prefixes.items():
            replies = base.generate(base.read(ids), prefix, max_reply_tokens)
            texts = base.tokenizer.batch_decode(replies)
            correct[mode] += [float(task.is_correct(text, e.answer)) for text, e in zip(texts, batch, strict=True)]
    return Observations(
        {name: torch.cat(parts) for name, parts in features.items()},
        {mode: torch.tensor(values) for mode, values in correct.items()},
        torch.tensor([examples[i].level for i in order]),
        torch.tensor([len(prompt_ids[i]) for i in order]),
    )


@dataclass(frozen=True, slots=True)
class FitConfig:
    model: str
    bundle: Path
    """Gets the probe and the threshold."""
    task: TaskSpec = field(default_factory=TaskSpec)
    n: int = 8000
    """Validation questions; a quarter of them choose the threshold."""
    explicit_questions: int = 500
    """As many of them are thought through as well: what the cheap mode is compared with."""
    max_loss: float = 0.02
    """Accuracy that auto may lose against explicit."""
    max_reply_tokens: int = 24
    max_thinking_tokens: int = 1024
    seed: int = 1


def main(config: FitConfig) -> dict[str, Any]:
    """Observe, fit, choose, and write into the bundle. Returns the held-out figures, which the bundle keeps."""
    bundle = Bundle.load(config.bundle)
    bundle.check_base(config.model)
    task = config.task.load()
    base = FrozenBase(config.model)
    net, layout = bundle.reasoning_net(), bundle.manifest.layout.token_ids(base.tokenizer)
    num_latents = bundle.manifest.num_latent_tokens or 0
    examples = list(itertools.islice(task.examples(config.seed, "validation"), config.n))
    if len(examples) < 40:
        raise StageError(f"{len(examples)} validation questions are too few to fit a probe on. Give more data, or --whole.")
    held_out = len(examples) // 4
    train, held = (
        observe(base, net, layout, task, part, num_latents, config.max_reply_tokens)
        for part in (examples[held_out:], examples[:held_out])
    )
    explicit = explicit_accuracy(config, base, layout, task, examples[: min(held_out, config.explicit_questions)])
    # Where there is a network its latents say best whether they will do; on the demo the raw states add only overfitting.
    probe = fit(train, ("latents",) if net else ("last", "mean"), seed=config.seed)
    cheap = "latent" if net else "direct"
    scores, correct = probabilities(probe, held, cheap), held.correct[cheap]
    threshold = threshold_for(scores, correct, config.max_loss, explicit)
    report = {
        "questions": {"fitted on": len(examples) - held_out, "held out": held_out},
        "accuracy": {mode: round(float(values.mean()), 4) for mode, values in held.correct.items()} | {"explicit": explicit},
        "auroc": {mode: round(auroc(probabilities(probe, held, mode), held.correct[mode]), 4) for mode in held.correct},
        "auroc of the prompt's length": round(auroc(-held.prompt_tokens.float(), correct), 4),
        "auroc within a level": {
            int(level): round(value, 4)
            for level in held.levels.unique()
            if not math.isnan(value := auroc(scores[held.levels == level], correct[held.levels == level]))
        },
        f"share answered in {cheap} mode": round(float((scores >= threshold).float().mean()), 4),
        "threshold": round(threshold, 4),
    }
    bundle.update(
        {"probe": probe},
        probe=probe.config,
        thresholds=Thresholds(**{cheap: threshold}),
        scores=bundle.manifest.scores | {"router fit": report},
    )
    return report


def explicit_accuracy(config: FitConfig, base: FrozenBase, layout: LayoutIds, task: Task, examples: list[Example]) -> float:
    """The share of questions that the base answers rightly when it thinks in text."""
    engine = VllmRollouts(config.model, layout)
    prompts = [[*base.prompt_ids(example.messages), *layout.explicit] for example in examples]
    replies = engine.from_tokens(prompts, Sampling(max_tokens=config.max_thinking_tokens))
    answered = zip(replies, examples, strict=True)
    correct = [task.is_correct(reply.text.rpartition("</think>")[2], example.answer) for (reply, *_), example in answered]
    return round(sum(correct) / len(correct), 4)


def fit(observed: Observations, features: tuple[str, ...], *, steps: int = 300, seed: int = 0) -> Probe:
    """A probe for all modes that were observed: full-batch AdamW, stopped where a fifth that it does not see is best."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    inputs = torch.cat([observed.features[name] for name in features], dim=1)  # (n, F)
    labels = torch.stack([observed.correct[mode] for mode in observed.correct], dim=1)  # (n, A)
    size = next(iter(observed.features.values())).shape[1]
    probe = Probe(ProbeConfig(base_hidden_size=size, features=features, targets=tuple(observed.correct)))
    probe.mean.copy_(inputs.mean(0))
    probe.std.copy_(inputs.std(0) + 1e-4)
    order = torch.randperm(len(inputs), generator=generator)
    unseen, seen = order[: len(order) // 5], order[len(order) // 5 :]
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.1)
    best, best_loss = copy.deepcopy(probe.state_dict()), float("inf")
    for _ in range(steps):
        with torch.no_grad():
            loss = float(binary_cross_entropy_with_logits(probe(inputs[unseen]), labels[unseen]))
        if loss < best_loss:
            best, best_loss = copy.deepcopy(probe.state_dict()), loss
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(probe(inputs[seen]), labels[seen]).backward()
        optimizer.step()
    probe.load_state_dict(best)
    return probe.eval()


@torch.no_grad()
def probabilities(probe: Probe, observed: Observations, mode: str) -> Tensor:
    """P(correct | mode) of every observed question, (n,)."""
    inputs = torch.cat([observed.features[name] for name in probe.config.features], dim=1)
    return probe(inputs).sigmoid()[:, [str(target) for target in probe.config.targets].index(mode)]


def threshold_for(scores: Tensor, correct: Tensor, max_loss: float, explicit_accuracy: float) -> float:
    """The lowest threshold at which answering the questions above it in the cheap mode costs at most `max_loss` accuracy.

    `explicit_accuracy` is what explicit thinking would have reached on them. Above 1 when even the surest cost more.
    """
    order = scores.argsort(descending=True)
    loss = (explicit_accuracy - correct[order]).cumsum(0) / len(scores)
    affordable = (loss <= max_loss).nonzero()
    return float(scores[order[affordable[-1]]]) if len(affordable) else 1.01


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the chance that a right answer is scored above a wrong one."""
    ranks = scores.argsort().argsort().double() + 1
    positive = labels.sum().item()
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    return float((ranks[labels > 0].sum() - positive * (positive + 1) / 2) / (positive * negative))
