"""Fit the difficulty probe on a frozen base and, where the bundle has one, its reasoning network; choose the threshold.

    latentserve router fit --model runs/base --bundle runs/bundle

Every question is answered several times in direct and in latent mode, and a part of them explicitly, on the vLLM engine. The
shares of right answers are the labels. Probe, threshold and the held-out figures become part of the bundle.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from tqdm import tqdm

from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.plots import Points, plot_lines
from reasoning_net.rollouts import Reply, Rollouts, Sampling, VllmRollouts, think
from reasoning_net.tasks import Example, Task, TaskSpec
from router.policy import Thresholds
from router.probe import Feature, Probe, ProbeConfig, Target

_BINS = 10
_TOKENS_WEIGHT = 0.2  # of the squared error of the log tokens, beside the cross-entropies


@dataclass(frozen=True, slots=True)
class Observations:
    """What the base (and the network) did on n questions."""

    features: dict[Feature, Tensor]  # (n, d)
    labels: dict[Target, Tensor]
    """(n,): per mode the share of right answers; tokens of an explicit answer. NaN where a question was not asked."""
    baselines: dict[str, Tensor]
    """(n,): what a probe has to beat, higher for harder questions. `steps` is the task's level."""

    def __getitem__(self, rows: slice | Tensor) -> "Observations":
        groups = (self.features, self.labels, self.baselines)
        return Observations(*({name: values[rows] for name, values in group.items()} for group in groups))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FitConfig:
    model: str
    bundle: Path
    """Gets the probe, the threshold and `reliability.png`."""
    task: TaskSpec = field(default_factory=TaskSpec)
    n: int = 8000
    """Validation questions; a quarter of them choose the threshold and give the figures."""
    explicit_questions: int = 2000
    """As many of them are answered explicitly as well, once."""
    samples: int = 4
    """Direct and latent answers per question."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_loss: float = 0.02
    """Accuracy that auto may lose against explicit."""
    max_reply_tokens: int = 24
    max_thinking_tokens: int = 1024
    hidden_size: int = 128
    """Of the probe; 0: linear heads."""
    seed: int = 1


def main(config: FitConfig) -> dict[str, Any]:
    """Observe, fit, choose, and write into the bundle. Returns the held-out figures, which the bundle keeps."""
    bundle = Bundle.load(config.bundle)
    bundle.check_base(config.model)
    task = config.task.load()
    base = FrozenBase(config.model)
    net, layout = bundle.reasoning_net(), bundle.manifest.layout.token_ids(base.tokenizer)
    stream = (example for example in task.examples(config.seed, "validation") if example.answer)
    examples = list(itertools.islice(stream, config.n))
    if len(examples) < 40:
        raise StageError(f"{len(examples)} validation questions are too few to fit a probe on. Give more data, or --whole.")
    engine = VllmRollouts(config.model, layout)
    observed = observe(config, base, net, engine, layout, task, examples, bundle.manifest.num_latent_tokens or 0)
    engine.close()
    held_out = len(examples) // 4
    held, train = observed[:held_out], observed[held_out:]
    # Where there is a network its latents say best whether they will do; on the demo the raw states add only overfitting.
    probe = fit(train, ("latents",) if net else ("last", "mean"), hidden_size=config.hidden_size, seed=config.seed)
    cheap: Target = "latent" if net else "direct"
    scores = predict(probe, held)
    explicit = float(held.labels["explicit"].nanmean())
    threshold = threshold_for(scores[cheap], held.labels[cheap], config.max_loss, explicit)
    figures = report(probe, held, cheap) | {
        "questions": {"fitted on": len(examples) - held_out, "held out": held_out},
        f"share answered in {cheap} mode": round(float((scores[cheap] >= threshold).float().mean()), 4),
        "threshold": round(threshold, 4),
    }
    lines: dict[str, Points] = {"ideal": [(0, 0, 0), (1, 1, 0)]}
    lines |= {mode: reliability(scores[mode], held.labels[mode]) for mode in probe.config.targets if mode != "tokens"}
    plot_lines(
        lines, config.bundle / "reliability.png",
        title="Reliability of the probe", x="predicted P(correct)", y="share of right answers",
    )  # fmt: skip
    bundle.update(
        {"probe": probe},
        probe=probe.config,
        thresholds=Thresholds(**{cheap: threshold}),
        scores=bundle.manifest.scores | {"router fit": figures},
    )
    return figures


@torch.no_grad()
def observe(
    config: FitConfig,
    base: FrozenBase,
    net: ReasoningNet | None,
    engine: Rollouts,
    layout: LayoutIds,
    task: Task,
    examples: Sequence[Example],
    num_latents: int,
) -> Observations:
    """Answer every question and keep the features that a probe may read, in the order of the examples."""
    copies = config.samples if config.temperature else 1
    answering = Sampling(config.max_reply_tokens, config.temperature, config.top_p, copies)
    thinking = replace(answering, max_tokens=config.max_thinking_tokens, copies=1)
    features: tuple[Feature, ...] = ("last", "mean", "latents") if net else ("last", "mean")
    reader = Probe(ProbeConfig(base_hidden_size=base.hidden_size, features=features))
    prompts = [base.prompt_ids(example.messages) for example in examples]
    rows: list[Tensor] = []
    entropies: list[Tensor] = []
    shares: dict[Target, list[float]] = {"direct": [], "latent": []} if net else {"direct": []}
    for at in tqdm(range(0, len(examples), 128), desc="observe", unit="batch"):
        batch, ids, sampling = examples[at : at + 128], prompts[at : at + 128], replace(answering, seed=config.seed + at)
        prompt = base.read(ids)
        latents = think(net, prompt, num_latents) if net else None
        rows.append(reader.features(prompt.hidden_states.float(), prompt.mask, latents))
        if latents is not None:
            shares["latent"] += right(engine.from_latents(ids, latents, sampling), batch, task)
        shares["direct"] += right(engine.from_tokens([[*x, *layout.direct] for x in ids], sampling), batch, task)
        entropies.append(first_token_entropy(base, layout, prompt))
    labels = {target: torch.tensor(values) for target, values in shares.items()}
    labels["explicit"], labels["tokens"] = (torch.full((len(examples),), math.nan) for _ in range(2))
    asked = torch.arange(len(examples))[:: max(1, len(examples) // max(1, config.explicit_questions))]
    for part in tqdm(asked.split(256), desc="think in text", unit="batch"):
        texts = [[*prompts[i], *layout.explicit] for i in part]
        replies = engine.from_tokens(texts, replace(thinking, seed=config.seed + int(part[0])))
        labels["explicit"][part] = torch.tensor(right(replies, [examples[i] for i in part], task, after="</think>"))
        labels["tokens"][part] = torch.tensor([float(len(reply.token_ids)) for (reply,) in replies])
    parts = torch.cat(rows).split(base.hidden_size, dim=1)
    baselines = {
        "length": torch.tensor([float(len(ids)) for ids in prompts]),
        "steps": torch.tensor([float(example.level) for example in examples]),
        "entropy": torch.cat(entropies),
    }
    return Observations(dict(zip(features, parts, strict=True)), labels, baselines)


def right(replies: list[list[Reply]], examples: Sequence[Example], task: Task, after: str | None = None) -> list[float]:
    """The share of right replies to each question. What follows `after` is the answer; where it is missing there is none."""
    shares = []
    for group, example in zip(replies, examples, strict=True):
        answers = [reply.text.partition(after)[2] if after else reply.text for reply in group]
        shares.append(sum(task.is_correct(answer, example.answer) for answer in answers) / len(group))
    return shares


def first_token_entropy(base: FrozenBase, layout: LayoutIds, prompt: Prompt) -> Tensor:
    """In nats, of the first token of a direct answer (GlimpRouter's signal), (B,). The prompt's cache is used up."""
    direct = base.embed(torch.tensor([layout.direct], device=base.device)).expand(len(prompt.mask), -1, -1)
    log_probs = base.model.lm_head(base.extend(prompt, direct)[:, -1]).float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).cpu()


def fit(
    observed: Observations, features: tuple[Feature, ...], *, hidden_size: int = 128, steps: int = 600, seed: int = 0
) -> Probe:
    """A probe for everything that was observed, stopped where a fifth that it does not see is best, and calibrated on that."""
    torch.manual_seed(seed)
    inputs = torch.cat([observed.features[name] for name in features], dim=1).cpu()  # (n, F)
    size = next(iter(observed.features.values())).shape[1]
    config = ProbeConfig(base_hidden_size=size, hidden_size=hidden_size, features=features, targets=tuple(observed.labels))
    probe = Probe(config)
    probe.mean.copy_(inputs.mean(0))
    probe.std.copy_(inputs.std(0) + 1e-4)
    labels = torch.stack(list(observed.labels.values()), dim=1)  # (n, A)
    for column, target in enumerate(config.targets):
        if target == "tokens":
            logarithms = labels[:, column].log()
            known = logarithms[~logarithms.isnan()]
            probe.shift[column], probe.scale[column] = known.mean(), known.std() + 1e-4
            labels[:, column] = (logarithms - probe.shift[column]) / probe.scale[column]
    order = torch.randperm(len(inputs))
    unseen, seen = order[: len(order) // 5], order[len(order) // 5 :]
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.1)
    best, best_loss = copy.deepcopy(probe.state_dict()), math.inf
    for _ in range(steps):
        with torch.no_grad():
            loss = float(_loss(config, probe(inputs[unseen]), labels[unseen]))
        if loss < best_loss:
            best, best_loss = copy.deepcopy(probe.state_dict()), loss
        batch = seen[torch.randint(len(seen), (512,))]
        optimizer.zero_grad()
        _loss(config, probe(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    probe.load_state_dict(best)
    calibrate(probe, inputs[unseen], labels[unseen])
    return probe.eval()


def _loss(config: ProbeConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum over the targets, each over the questions (B,) that it was observed on."""
    losses = []
    for target, output, label in zip(config.targets, outputs.unbind(1), labels.unbind(1), strict=True):
        known = ~label.isnan()
        if bool(known.any()):
            is_tokens = target == "tokens"
            loss = mse_loss if is_tokens else binary_cross_entropy_with_logits
            losses.append((_TOKENS_WEIGHT if is_tokens else 1.0) * loss(output[known], label[known]))
    return torch.stack(losses).sum()


@torch.no_grad()
def calibrate(probe: Probe, inputs: Tensor, labels: Tensor) -> None:
    """Temperature scaling: per mode the factor on the logits whose cross-entropy on these questions is least."""
    outputs, factors = probe(inputs), torch.logspace(-0.5, 0.5, 101)
    for column, target in enumerate(probe.config.targets):
        known = ~labels[:, column].isnan()
        if target == "tokens" or not bool(known.any()):
            continue
        logits, label = outputs[known, column], labels[known, column]
        losses = torch.stack([binary_cross_entropy_with_logits(logits * factor, label) for factor in factors])
        probe.scale[column] = factors[losses.argmin()]


@torch.no_grad()
def predict(probe: Probe, observed: Observations) -> dict[Target, Tensor]:
    """The probe's scores of every observed question, (n,) each."""
    return probe.scores(torch.cat([observed.features[name] for name in probe.config.features], dim=1))


def report(probe: Probe, held: Observations, cheap: Target) -> dict[str, Any]:
    """Held-out figures: how well the probe ranks, how well it is calibrated, and what the baselines reach."""
    scores, modes = predict(probe, held), [target for target in probe.config.targets if target != "tokens"]
    known = {mode: ~held.labels[mode].isnan() for mode in modes}
    forecasts = {mode: (scores[mode][known[mode]], held.labels[mode][known[mode]]) for mode in modes}
    levels, label = held.baselines["steps"], held.labels[cheap]
    within = {int(level): auroc(scores[cheap][levels == level], label[levels == level]) for level in levels.unique()}
    figures: dict[str, dict[Any, float]] = {
        "accuracy": {mode: float(labels.mean()) for mode, (_, labels) in forecasts.items()},
        "auroc": {mode: auroc(*forecast) for mode, forecast in forecasts.items()},
        "brier": {mode: brier(*forecast) for mode, forecast in forecasts.items()},
        "calibration error": {mode: calibration_error(*forecast) for mode, forecast in forecasts.items()},
        f"auroc of baselines for {cheap}": {name: auroc(-values, label) for name, values in held.baselines.items()},
        f"auroc for {cheap} within a level": within,
    }
    asked = ~held.labels["tokens"].isnan()
    tokens, predicted = held.labels["tokens"][asked], scores["tokens"][asked]
    figures["explicit tokens"] = {
        "mean": float(tokens.mean()),
        "mean absolute error": float((tokens - predicted).abs().mean()),
        "mean absolute error of the mean": float((tokens - tokens.mean()).abs().mean()),
    }
    return {
        name: {key: round(value, 4) for key, value in group.items() if not math.isnan(value)} for name, group in figures.items()
    }


def threshold_for(scores: Tensor, correct: Tensor, max_loss: float, explicit_accuracy: float) -> float:
    """The lowest threshold at which answering the questions above it in the cheap mode costs at most `max_loss` accuracy.

    `explicit_accuracy` is what explicit thinking would have reached on them. Above 1 when even the surest cost more.
    """
    order = scores.argsort(descending=True)
    loss = (explicit_accuracy - correct[order]).cumsum(0) / len(scores)
    affordable = (loss <= max_loss).nonzero()
    return float(scores[order[affordable[-1]]]) if len(affordable) else 1.01


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the chance that a right answer is scored above a wrong one; ties count half.

    Labels (n,) are shares of right answers. NaN where all are right, or all wrong.
    """
    _, group = scores.unique(return_inverse=True)  # ascending
    right, wrong = (torch.zeros(int(group.max()) + 1, dtype=torch.double) for _ in range(2))
    right.index_add_(0, group, labels.double())
    wrong.index_add_(0, group, 1 - labels.double())
    pairs = right.sum() * wrong.sum()
    below = wrong.cumsum(0) - wrong
    return float((right * (below + wrong / 2)).sum() / pairs) if pairs else math.nan


def brier(scores: Tensor, labels: Tensor) -> float:
    """Mean squared error of P(correct) as a forecast of each answer; labels are shares of right answers."""
    return float((labels * (1 - scores) ** 2 + (1 - labels) * scores**2).mean())


def _bins(scores: Tensor) -> Tensor:
    """Which tenth of [0, 1] each score is in."""
    return (scores * _BINS).long().clamp(0, _BINS - 1)


def reliability(scores: Tensor, labels: Tensor) -> list[tuple[float, float, float]]:
    """(mean prediction, share of right answers, its standard error) in each tenth of [0, 1] that holds predictions."""
    known = ~labels.isnan()
    scores, labels = scores[known], labels[known]
    bins = _bins(scores)
    points = []
    for index in bins.unique().tolist():
        share = float(labels[bins == index].mean())
        error = math.sqrt(share * (1 - share) / int((bins == index).sum()))
        points.append((float(scores[bins == index].mean()), share, error))
    return points


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Expected calibration error over ten bins of equal width."""
    bins = _bins(scores)
    return sum(abs(float((scores - labels)[bins == index].sum())) for index in bins.unique()) / len(scores)
