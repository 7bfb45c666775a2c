"""Fit the difficulty probe on a frozen base and, where the bundle has one, its reasoning network; calibrate the router.

    latentserve router fit --model runs/base --bundle runs/bundle

Every question is answered several times in direct and in latent mode, and a part of them explicitly, on the vLLM engine. The
shares of right answers are the labels. Probe, calibration and the held-out figures become part of the bundle.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from tqdm import tqdm

from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Model, Questions, Seed, Share, commas
from reasoning_net.plots import Points, plot_lines
from reasoning_net.rollouts import Reply, Rollouts, Sampling, VllmRollouts, think
from reasoning_net.stages.calibrate import calibrate
from reasoning_net.tasks import Example, Task, TaskSpec
from router.calibration import Confidence, log_odds
from router.calibration import Target as RouterTarget
from router.figures import auroc, brier, calibration_error, reliability
from router.outcomes import Outcome, to_tensors
from router.policy import Mode, Scores
from router.probe import Feature, Probe, ProbeConfig, Target

_TOKENS_WEIGHT = 0.2  # of the squared error of the log tokens, beside the cross-entropies


@dataclass(frozen=True, slots=True)
class Observations:
    """What the base (and the network) did on n questions."""

    features: dict[Feature, Tensor]  # (n, d)
    labels: dict[str, Tensor]
    """(n,): per mode the share of right answers; tokens of an explicit answer. NaN where a question was not asked."""
    baselines: dict[str, Tensor]
    """(n,): what a probe has to beat, higher for harder questions. `steps` is the task's level."""
    answers: dict[str, Tensor]
    """(n, S) of S answers in the cheap mode: `correct`; `confidence`, the probability of the least certain token; `tokens`.
    And (n,) of the direct answers: `direct tokens`."""

    def __getitem__(self, rows: slice | Tensor) -> "Observations":
        groups = (self.features, self.labels, self.baselines, self.answers)
        return Observations(*({name: values[rows] for name, values in group.items()} for group in groups))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    bundle: Path
    """Gets the probe, the calibration and reliability.png; made by `latentserve bundle`."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 8000
    """Validation questions; a quarter of them are held out, calibrate the router and give the figures."""
    explicit_questions: NonNegativeInt = 1000
    """Of the others, as many are answered explicitly as well, once; the held-out ones all are."""
    samples: PositiveInt = 4
    """Direct and latent answers per question."""
    temperature: NonNegativeFloat = 0.6
    """Of the answers; 0: one greedy answer each."""
    top_p: Share = 0.95
    """Sample from the likeliest tokens of this mass."""
    max_loss: Share = 0.01
    """Accuracy that auto may lose against explicit, until `router calibrate` sets another target."""
    max_reply_tokens: PositiveInt = 24
    """Limit on an answer without thinking."""
    max_thinking_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""
    hidden_size: NonNegativeInt = 128
    """Of the probe; 0: linear heads."""
    features: Annotated[tuple[Feature, ...], commas(str)] = ()
    """What the probe reads, of last, mean, latents; by default last, and latents where there is a network, else mean."""
    layers: Annotated[tuple[PositiveInt, ...], commas(int)] = ()
    """Earlier layers whose states join last and mean, such as 2,4."""
    seed: Seed = 1


def main(config: FitConfig) -> dict[str, Any]:
    """Observe, fit, calibrate, and write into the bundle. Returns the held-out figures, which the bundle keeps."""
    bundle = Bundle.load(config.bundle)
    bundle.check_base(config.model)
    task = config.task.load()
    base = FrozenBase(config.model)
    net, layout = bundle.reasoning_net(), bundle.manifest.layout.token_ids(base.tokenizer)
    stream = (example for example in task.examples(config.seed, "validation") if example.answer)
    examples = list(itertools.islice(stream, config.n))
    if len(examples) < 40:
        raise StageError(f"{len(examples)} validation questions are too few to fit a probe on. Give more data, or --whole.")
    # Where there is a network its latents say best whether they will do, and the last state how long a chain would be.
    features = config.features or (("last", "latents") if net else ("last", "mean"))
    check_features(features, config.layers, net is not None, base.num_layers)
    engine = VllmRollouts(config.model, layout)
    held_out = len(examples) // 4
    observed = observe(config, base, net, engine, layout, task, examples, held_out, bundle.manifest.num_latent_tokens or 0)
    engine.close()
    held, train = observed[:held_out], observed[held_out:]
    probe = fit(train, features, layers=config.layers, hidden_size=config.hidden_size, seed=config.seed)
    cheap = Mode.LATENT if net else Mode.DIRECT
    scores = predict(probe, held)
    outcomes, confidence = calibration_outcomes(held, scores, cheap)
    floor = float(held.labels["explicit"].mean()) - config.max_loss
    calibration = calibrate(outcomes, confidence, RouterTarget(accuracy_floor=max(0.0, floor)), cheap)
    figures = report(probe, held, cheap) | {
        "questions": {"fitted on": len(examples) - held_out, "held out": held_out},
    }
    lines: dict[str, Points] = {"ideal": [(0, 0, 0), (1, 1, 0)]}
    lines |= {mode: reliability(scores[mode], held.labels[mode]) for mode in probe.config.targets if mode != "tokens"}
    plot_lines(
        lines, config.bundle / "reliability.png",
        title="Reliability of the probe", x="predicted P(correct)", y="share of right answers",
    )  # fmt: skip
    bundle.update(
        {"probe": probe, "calibration": to_tensors(outcomes)},
        probe=probe.config,
        calibration=calibration,
        scores=bundle.manifest.scores | {"router fit": figures},
    )
    return figures | {"calibrated": calibration.point.model_dump(exclude_none=True)}


@torch.no_grad()
def observe(
    config: FitConfig,
    base: FrozenBase,
    net: ReasoningNet | None,
    engine: Rollouts,
    layout: LayoutIds,
    task: Task,
    examples: Sequence[Example],
    held_out: int,
    num_latents: int,
) -> Observations:
    """Answer every question and keep the features that a probe may read, in the order of the examples."""
    copies = config.samples if config.temperature else 1
    answering = Sampling(config.max_reply_tokens, config.temperature, config.top_p, copies, confidence=True)
    thinking = replace(answering, max_tokens=config.max_thinking_tokens, copies=1, confidence=False)
    features: tuple[Feature, ...] = ("last", "mean", "latents") if net else ("last", "mean")
    read_by = ProbeConfig(base_hidden_size=base.hidden_size, features=features, layers=config.layers)
    reader = Probe(read_by)
    prompts = [base.prompt_ids(example.messages) for example in examples]
    rows: list[Tensor] = []
    entropies: list[Tensor] = []
    direct: list[Answers] = []
    latent: list[Answers] = []
    for at in tqdm(range(0, len(examples), 128), desc="observe", unit="batch"):
        batch, ids, sampling = examples[at : at + 128], prompts[at : at + 128], replace(answering, seed=config.seed + at)
        prompt = base.read(ids, config.layers)
        latents = think(net, prompt, num_latents) if net else None
        rows.append(reader.features(prompt.all_states.float(), prompt.mask, latents))
        if latents is not None:
            latent.append(Answers.of(engine.from_latents(ids, latents, sampling), batch, task))
        direct.append(Answers.of(engine.from_tokens([[*x, *layout.direct] for x in ids], sampling), batch, task))
        entropies.append(first_token_entropy(base, layout, prompt))
    of_direct, of_cheap = Answers.joined(direct), Answers.joined(latent or direct)
    labels: dict[str, Tensor] = {"direct": of_direct.correct.mean(1)}
    if net:
        labels["latent"] = of_cheap.correct.mean(1)
    labels["explicit"], labels["tokens"] = (torch.full((len(examples),), math.nan) for _ in range(2))
    others = torch.arange(held_out, len(examples))
    others = others[:: max(1, len(others) // max(1, config.explicit_questions))]
    asked = torch.cat([torch.arange(held_out), others])
    for part in tqdm(asked.split(256), desc="think in text", unit="batch"):
        texts = [[*prompts[i], *layout.explicit] for i in part]
        replies = engine.from_tokens(texts, replace(thinking, seed=config.seed + int(part[0])))
        thought = Answers.of(replies, [examples[i] for i in part], task, after="</think>")
        labels["explicit"][part], labels["tokens"][part] = thought.correct[:, 0], thought.tokens[:, 0]
    parts = torch.cat(rows).split(read_by.sizes(), dim=1)
    baselines = {
        "length": torch.tensor([float(len(ids)) for ids in prompts]),
        "steps": torch.tensor([float(example.level) for example in examples]),
        "entropy": torch.cat(entropies),
    }
    answers = {name: getattr(of_cheap, name) for name in ("correct", "confidence", "tokens")}
    answers["direct tokens"] = of_direct.tokens.mean(1)
    return Observations(dict(zip(features, parts, strict=True)), labels, baselines, answers)


@dataclass(frozen=True, slots=True)
class Answers:
    """Several answers to each of n questions, (n, S) each."""

    correct: Tensor
    confidence: Tensor
    """Probability of the least certain token; NaN where it is not known."""
    tokens: Tensor

    @classmethod
    def of(cls, replies: list[list[Reply]], examples: Sequence[Example], task: Task, after: str | None = None) -> "Answers":
        """Graded. What follows `after` is the answer; where it is missing there is none."""

        def grade(reply: Reply, example: Example) -> float:
            return float(task.is_correct(reply.text.partition(after)[2] if after else reply.text, example.answer))

        def unknown(confidence: float | None) -> float:
            return math.nan if confidence is None else confidence

        return cls(
            torch.tensor([[grade(reply, e) for reply in group] for group, e in zip(replies, examples, strict=True)]),
            torch.tensor([[unknown(reply.confidence) for reply in group] for group in replies]),
            torch.tensor([[float(len(reply.token_ids)) for reply in group] for group in replies]),
        )

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("correct", "confidence", "tokens")))


def calibration_outcomes(held: Observations, scores: dict[str, Tensor], cheap: Mode) -> tuple[list[Outcome], Confidence]:
    """The held-out questions as outcomes, each with its first answer in the cheap mode."""
    correct, confidences, tokens = (held.answers[name] for name in ("correct", "confidence", "tokens"))
    rest = slice(1, None) if correct.shape[1] > 1 else slice(None)
    priors = scores[cheap][:, None].expand_as(correct)[:, rest].flatten()
    confidence = fit_confidence(priors, confidences[:, rest].flatten(), correct[:, rest].flatten())
    by_mode = {Mode.DIRECT: held.labels["direct"], cheap: correct[:, 0], Mode.EXPLICIT: held.labels["explicit"]}
    tokens_by_mode = {Mode.DIRECT: held.answers["direct tokens"], cheap: tokens[:, 0], Mode.EXPLICIT: held.labels["tokens"]}
    outcomes = [
        Outcome(
            Scores(**{target: float(values[row]) for target, values in scores.items()}),
            float(confidences[row, 0]),
            {mode: float(values[row]) for mode, values in by_mode.items()},
            {mode: float(values[row]) for mode, values in tokens_by_mode.items()},
        )
        for row in range(len(correct))
    ]
    return outcomes, confidence


def fit_confidence(priors: Tensor, confidences: Tensor, correct: Tensor) -> Confidence:
    """Logistic regression of an answer's correctness, all (n,), on the logarithms of the odds of both probabilities."""
    inputs = torch.tensor([[log_odds(p), log_odds(c), 1.0] for p, c in zip(priors.tolist(), confidences.tolist(), strict=True)])
    weights = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        # A little decay, for answers that are all right or all wrong.
        value = binary_cross_entropy_with_logits(inputs @ weights, correct) + 1e-4 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    prior_weight, answer_weight, bias = weights.tolist()
    return Confidence(prior_weight=prior_weight, answer_weight=answer_weight, bias=bias)


def check_features(features: Sequence[str], layers: Sequence[int], has_network: bool, num_layers: int) -> None:
    """Raise `StageError` for features that this base, or this bundle, does not have."""
    known = [name for name in get_args(Feature) if name != "latents" or has_network]
    if unknown := set(features) - set(known):
        raise StageError(f"There is no feature {', '.join(sorted(unknown))} here. Features are {', '.join(known)}.")
    if any(not 0 < layer < num_layers for layer in layers):
        raise StageError(f"Layers are 1 to {num_layers - 1}: the final states are always read.")
    if layers and not {"last", "mean"} & set(features):
        raise StageError("Layers are read by the features last and mean. Add one of them: --features mean,latents.")


def first_token_entropy(base: FrozenBase, layout: LayoutIds, prompt: Prompt) -> Tensor:
    """In nats, of the first token of a direct answer (GlimpRouter's signal), (B,). The prompt's cache is used up."""
    direct = base.embed(torch.tensor([layout.direct], device=base.device)).expand(len(prompt.mask), -1, -1)
    log_probs = base.model.lm_head(base.extend(prompt, direct)[:, -1]).float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).cpu()


def fit(
    observed: Observations,
    features: tuple[Feature, ...],
    *,
    layers: tuple[int, ...] = (),
    hidden_size: int = 128,
    steps: int = 600,
    seed: int = 0,
) -> Probe:
    """A probe for everything that was observed, stopped where a fifth that it does not see is best, and calibrated on that."""
    torch.manual_seed(seed)
    inputs = torch.cat([observed.features[name] for name in features], dim=1).cpu()  # (n, F)
    size = observed.features["last"].shape[1] // (1 + len(layers))
    targets = cast("tuple[Target, ...]", tuple(observed.labels))
    config = ProbeConfig(base_hidden_size=size, hidden_size=hidden_size, features=features, layers=layers, targets=targets)
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
    scale_temperatures(probe, inputs[unseen], labels[unseen])
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
def scale_temperatures(probe: Probe, inputs: Tensor, labels: Tensor) -> None:
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
def predict(probe: Probe, observed: Observations) -> dict[str, Tensor]:
    """The probe's scores of every observed question, (n,) each."""
    return probe.scores(torch.cat([observed.features[name] for name in probe.config.features], dim=1))


def report(probe: Probe, held: Observations, cheap: Mode) -> dict[str, Any]:
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
