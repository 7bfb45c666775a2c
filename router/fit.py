"""Fit the difficulty probe on a frozen base and, where there is one, its reasoning network; choose the threshold.

    latentserve router fit --model runs/base --net runs/sft --output runs/bundle

Labels are the greedy answers' correctness, in direct and in latent mode, on questions that no training saw.
"""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.pack import pack
from reasoning_net.sft import load_net
from reasoning_net.tasks import TASKS, Example, Task
from router.policy import Thresholds
from router.probe import Probe, ProbeConfig

_MAX_REPLY_TOKENS = 24
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
    base: FrozenBase, net: ReasoningNet | None, layout: LayoutIds, task: Task, examples: list[Example], num_latents: int
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
            replies = base.generate(base.read(ids), prefix, _MAX_REPLY_TOKENS)
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
    net: Path | None
    output: Path
    n: int = 8000
    num_latent_tokens: int = 16
    explicit_accuracy: float = 0.995
    max_loss: float = 0.0205
    seed: int = 1
    task: str = "demo"


def main(config: FitConfig) -> dict[str, Any]:
    """Observe, fit, choose, pack. Returns the held-out figures, which the bundle keeps."""
    task = TASKS[config.task]()
    base = FrozenBase(config.model)
    net, layout = load_net(config.net, config.model)
    examples = validation_examples(task, config.seed, config.n)
    held_out = config.n // 4
    train, held = (
        observe(base, net, layout.token_ids(base.tokenizer), task, part, config.num_latent_tokens)
        for part in (examples[held_out:], examples[:held_out])
    )
    # Where there is a network its latents say best whether they will do; on the demo the raw states add only overfitting.
    probe = fit(train, ("latents",) if net else ("last", "mean"), seed=config.seed)
    cheap = "latent" if net else "direct"
    scores, correct = probabilities(probe, held, cheap), held.correct[cheap]
    threshold = threshold_for(scores, correct, config.max_loss, config.explicit_accuracy)
    report = {
        "questions": {"fitted on": len(examples) - held_out, "held out": held_out},
        "accuracy": {mode: round(float(values.mean()), 4) for mode, values in held.correct.items()},
        "auroc": {mode: round(auroc(probabilities(probe, held, mode), held.correct[mode]), 4) for mode in held.correct},
        "auroc of the prompt's length": round(auroc(-held.prompt_tokens.float(), correct), 4),
        "auroc within a level": {
            int(level): round(auroc(scores[held.levels == level], correct[held.levels == level]), 4)
            for level in held.levels.unique()
        },
        f"share answered in {cheap} mode": round(float((scores >= threshold).float().mean()), 4),
        "threshold": round(threshold, 4),
    }
    pack(
        config.model,
        config.output,
        layout,
        net=net,
        num_latent_tokens=config.num_latent_tokens,
        probe=probe,
        thresholds=Thresholds(**{cheap: threshold}),
        parity_messages=examples[0].messages,
        trained_on=config.task,
        scores={"router fit": report},
    )
    return report


def validation_examples(task: Task, seed: int, n: int) -> list[Example]:
    return list(itertools.islice(task.examples(seed, "validation"), n))


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
