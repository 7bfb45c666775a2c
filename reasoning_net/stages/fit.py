"""Fit the difficulty probe on a frozen base and, where the bundle has one, its reasoning network; calibrate the router.

    latentserve router fit --model runs/base --bundle runs/bundle

Questions are answered (`observe`), a probe learns how right the answers were (`train_probe`), and the held-out quarter of them
calibrates the router. Probe, calibration and the held-out figures become part of the bundle.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from cyclopts import Parameter
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.questions import Split
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.manifest import Manifest
from reasoning_net.options import Model, Questions, Seed, Share, commas
from reasoning_net.plots import Points, plot_lines
from reasoning_net.precision import engine_dtype
from reasoning_net.rollouts import Sampling, VllmRollouts
from reasoning_net.stages.calibrate import calibrate
from reasoning_net.stages.difficulty import Labelling, classified
from reasoning_net.stages.observe import Observations, Observer, Store, doubts
from reasoning_net.stages.train_probe import predict, train_probe
from reasoning_net.tasks import TaskSpec
from reasoning_net.training import training_device
from router.calibration import Calibration, Confidence, Target, log_odds
from router.figures import auroc, brier, calibration_error, reliability
from router.outcomes import Outcome, to_tensors
from router.policies.diffadapt import Strategies
from router.policy import Mode, RouterError, Scores
from router.probe import Feature, Probe
from router.probe_config import rung, scores_of

logger = logging.getLogger(__name__)
Labels = Literal["modes", "diffadapt"]
FEWEST = 40
"""Questions that a probe is fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    bundle: Path
    """Gets the probe, the calibration and reliability.png; made by `latentserve bundle`."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 8000
    """Questions; a quarter of them are held out, calibrate the router and give the figures."""
    splits: Annotated[tuple[Split, ...], commas(str)] = ("validation",)
    """Where they come from; validation,train where no network was trained on those: a probe alone."""
    observations: Path | None = None
    """Directory that keeps what the engine answered; a run found there goes on."""
    explicit_questions: NonNegativeInt = 1000
    """Of the others, as many are answered explicitly as well, once; the held-out ones all are."""
    samples: PositiveInt = 4
    """Direct and latent answers per question."""
    temperature: NonNegativeFloat = 0.6
    """Of the answers; 0: one greedy answer each."""
    top_p: Share = 0.95
    """Sample from the likeliest tokens of this mass."""
    thinking: Literal[Mode.EXPLICIT, Mode.LATENT_EXPLICIT] = Mode.EXPLICIT
    """What auto answers hard questions with: latent+explicit where the network was trained for it, and where that pays."""
    max_loss: Share = 0.005
    """Accuracy that auto may lose against explicit, until `router calibrate` sets another target."""
    max_reply_tokens: PositiveInt = 24
    """Limit on an answer without thinking."""
    max_thinking_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""
    hidden_size: NonNegativeInt = 128
    """Of the probe; 0: linear heads."""
    ladder: Annotated[tuple[PositiveInt, ...], commas(int)] = ()
    """Numbers of latents below the bundle's, such as 4,8: questions are answered with as many, too, and the probe learns which
    number suffices. For num_latent_tokens=auto."""
    features: Annotated[tuple[Feature, ...], commas(str)] = ()
    """What the probe reads, of last, mean, latents; by default last, and latents where there is a network, else mean."""
    layers: Annotated[tuple[PositiveInt, ...], commas(int)] = ()
    """Earlier layers whose states join last and mean, such as 2,4."""
    labels: Labels = "modes"
    """What policy diffadapt tells questions apart by. modes: P(correct) of each mode; diffadapt: the paper's classes, from
    accuracy and entropy of several explicit answers, for which the probe gets a head of its own."""
    labelling: Annotated[Labelling, Parameter(name="*", group="With --labels diffadapt")] = field(default_factory=Labelling)
    prompts: bool = False
    """Under policy diffadapt, chains begin with a sentence on how to think: for bases that follow one; the demo's does not."""
    seed: Seed = 1


def main(config: FitConfig) -> dict[str, Any]:
    """Observe, fit, calibrate, and write into the bundle. Returns the held-out figures, which the bundle keeps."""
    bundle = Bundle.load(config.bundle)
    bundle.check_writable()
    bundle.check_base(config.model)
    has_network = bundle.manifest.reasoning_net is not None
    # Where there is a network its latents say best whether they will do, and the last state how long a chain would be.
    features = config.features or (("last", "latents") if has_network else ("last", "mean"))
    bundle.manifest.layout.check_explicit()
    if config.thinking.uses_latents and not bundle.manifest.thinks_on:
        raise StageError("The bundle's network was not trained for latent+explicit. Train one: `train sft --rest-share 0.2`.")
    number = bundle.manifest.num_latent_tokens or 0
    if config.ladder and max(config.ladder) >= number:
        raise StageError(f"--ladder takes numbers below the bundle's {number} latents, which are always observed.")
    check_labels(config, features)
    check_rows(config, bundle.manifest)
    observed = _observe(config, bundle, features, number)
    held_out = len(observed.labels["direct"]) // 4
    held, train = observed[:held_out], observed[held_out:]
    probe = train_probe(train, features, layers=config.layers, hidden_size=config.hidden_size, seed=config.seed)
    cheap = Mode.LATENT if has_network else Mode.DIRECT
    scores = predict(probe, held)
    per_question = scores_of({name: values.tolist() for name, values in scores.items()})
    outcomes, confidence = calibration_outcomes(held, per_question, cheap)
    floor = float(held.labels["explicit"].mean()) - config.max_loss
    calibration, out_of_reach = calibrated(outcomes, confidence, max(0.0, floor), cheap, config.thinking)
    strategies = Strategies.prompted(bundle.manifest.layout.before_latents) if config.prompts else Strategies()
    calibration = calibration.model_copy(update={"latent_loss": config.max_loss, "strategies": strategies})
    figures = report(probe, held, cheap)
    if probe.config.ladder:
        figures |= report_ladder(per_question, held, number, config.max_loss)
    if config.labels == "diffadapt":
        probe, figures["diffadapt"] = classified(probe, train, held, config.labelling, config.seed)
    figures["data"] = config.task.name
    if warnings := [*doubts(observed), *out_of_reach]:
        figures["warning"] = " ".join(warnings)
        logger.warning(figures["warning"])
    figures["questions"] = {"fitted on": len(train.labels["direct"]), "held out": held_out}
    lines: dict[str, Points] = {"ideal": [(0, 0, 0), (1, 1, 0)]}
    observed_shares = held.labels | {rung(few): shares for few, shares in held.by_latents.items()}
    lines |= {name: reliability(scores[name], observed_shares[name]) for name in probe.config.outputs if name != "tokens"}
    plot_lines(
        lines, bundle.directory / "reliability.png",
        title="Reliability of the probe", x="predicted P(correct)", y="share of right answers",
    )  # fmt: skip
    parts: dict[str, Any] = {"probe": probe, "calibration": to_tensors(outcomes)}
    kept = bundle.manifest.scores | {"router fit": figures}
    bundle.update(parts, probe=probe.config, calibration=calibration, scores=kept)
    return figures | {"calibrated": calibration.point.model_dump(exclude_none=True)}


def calibrated(
    outcomes: Sequence[Outcome], confidence: Confidence | None, floor: float, cheap: Mode, thinking: Mode
) -> tuple[Calibration, list[str]]:
    """At the floor; where no setting reaches it, since a probe of few questions is sure of a wrong answer, at what is as right
    as the setting that thinks most, and with a word about that: what was observed shall not be lost."""
    found, target = calibrate(outcomes, confidence, Target(accuracy_loss=0.0), cheap, thinking), Target(accuracy_floor=floor)
    try:
        return found.model_copy(update={"target": target, "point": found.for_target(target)}), []
    except RouterError:
        said = f"No setting of auto is right on {floor:.3f} of the questions held out, the one that was taken on"
        return found, [f"{said} {found.point.accuracy:.3f}: the probe needs more questions."]


def _observe(config: FitConfig, bundle: Bundle, features: tuple[Feature, ...], number: int) -> Observations:
    """Questions; those of the first quarter, which is held out, are all thought through in text as well."""
    task, net, device = config.task.load(), bundle.reasoning_net(), training_device()
    base, net = FrozenBase(config.model, device, engine_dtype(device)), net.to(device) if net else None
    streams = (task.once(config.seed, split) for split in config.splits)
    examples = list(itertools.islice((e for e in itertools.chain.from_iterable(streams) if e.answer), config.n))
    if len(examples) < FEWEST:
        raise StageError(
            f"{len(examples)} {' and '.join(config.splits)} questions are too few to fit a probe on: it takes {FEWEST}. "
            "Give more data, or --splits validation,train where no network was trained on them."
        )
    check_features(features, config.layers, net is not None, base.num_layers)
    layout = bundle.manifest.layout.token_ids(base.tokenizer)
    copies = config.samples if config.temperature else 1
    answering = Sampling(config.max_reply_tokens, config.temperature, config.top_p, copies, confidence=True)
    copies_of_chains = config.labelling.chains if config.labels == "diffadapt" else 1
    thinking = replace(answering, max_tokens=config.max_thinking_tokens, copies=copies_of_chains, confidence=False)
    engine = VllmRollouts(config.model, layout)
    observer = Observer(
        base, net, number, engine, layout, task, answering, thinking,
        config.thinking.uses_latents,
        config.layers, config.seed, tuple(sorted(set(config.ladder))),
    )  # fmt: skip
    held_out, others = torch.arange(len(examples)).tensor_split([len(examples) // 4])
    explicit = torch.cat([held_out, others[:: max(1, len(others) // max(1, config.explicit_questions))]])
    store = (
        Store(config.observations, asdict(replace(config, observations=None, bundle=Path()))) if config.observations else None
    )
    observed = observer.observe(examples, explicit, store)
    engine.close()
    return observed


def calibration_outcomes(held: Observations, scores: list[Scores], cheap: Mode) -> tuple[list[Outcome], Confidence]:
    """The held-out questions as outcomes, each with its first answer in the cheap mode."""
    correct, confidences, tokens = (held.answers[name] for name in ("correct", "confidence", "tokens"))
    rest = slice(1, None) if correct.shape[1] > 1 else slice(None)
    priors = torch.tensor([one.correct(cheap) for one in scores])[:, None].expand_as(correct)[:, rest].flatten()
    confidence = fit_confidence(priors, confidences[:, rest].flatten(), correct[:, rest].flatten())
    by_mode = {Mode.DIRECT: held.labels["direct"], cheap: correct[:, 0], Mode.EXPLICIT: held.labels["explicit"]}
    tokens_by_mode = {Mode.DIRECT: held.answers["direct tokens"], cheap: tokens[:, 0], Mode.EXPLICIT: held.labels["tokens"]}
    outcomes = [
        Outcome(
            replace(scores[row], by_latents=()),
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


def check_rows(config: FitConfig, manifest: Manifest) -> None:
    """Raise `StageError` for questions that the bundle's network was trained on: its answers to them are better than others."""
    reused = "--whole" if config.task.whole else "--splits train" if "train" in config.splits else ""
    if manifest.reasoning_net and reused and config.task.name in manifest.trained_on.split(", "):
        raise StageError(
            f"With {reused} the router would be fitted on rows of {config.task.name} that the bundle's network was trained on, "
            "which it answers better than others. Leave it out, or give other data."
        )


def check_features(features: Sequence[str], layers: Sequence[int], has_network: bool, num_layers: int) -> None:
    """Raise `StageError` for features that this base, or this bundle, does not have."""
    known = [name for name in get_args(Feature) if name != "latents" or has_network]
    if unknown := set(features) - set(known):
        raise StageError(f"There is no feature {', '.join(sorted(unknown))} here. Features are {', '.join(known)}.")
    if any(not 0 < layer < num_layers for layer in layers):
        raise StageError(f"Layers are 1 to {num_layers - 1}: the final states are always read.")
    if layers and not {"last", "mean"} & set(features):
        raise StageError("Layers are read by the features last and mean. Add one of them: --features mean,latents.")


def check_labels(config: FitConfig, features: Sequence[Feature]) -> None:
    """Raise `StageError` for DiffAdapt's labels where there is nothing to learn them with."""
    if config.labels == "modes":
        if config.labelling != Labelling():
            raise StageError("--chains, --normal-accuracy, --normal-entropy and --hard-accuracy are for --labels diffadapt.")
        return
    if not config.temperature:
        raise StageError("--labels diffadapt needs answers that differ: leave out --temperature 0.")
    if config.thinking is not Mode.EXPLICIT:
        raise StageError("--labels diffadapt looks at explicit answers: leave out --thinking.")
    if "last" not in features or not config.hidden_size:
        raise StageError("--labels diffadapt reads the last state, through a hidden layer: --features last --hidden-size 128.")


def report_ladder(scores: list[Scores], held: Observations, number: int, max_loss: float) -> dict[str, Any]:
    """Accuracy by the number of latents, and what choosing it by question gives: by number of steps the mean chosen."""
    shares = {**held.by_latents, number: held.labels["latent"]}
    chosen = [one.fewest_latents(number, max_loss) for one in scores]
    counts, levels = torch.tensor(chosen, dtype=torch.float), held.baselines["steps"]
    return {
        "accuracy by latents": {few: round(float(share.mean()), 4) for few, share in shares.items()},
        "latents chosen": {
            "mean": round(float(counts.mean()), 2),
            "accuracy": round(statistics.fmean(float(shares[few][row]) for row, few in enumerate(chosen)), 4),
        },
        "latents chosen by level": {int(level): round(float(counts[levels == level].mean()), 2) for level in levels.unique()},
    }


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
