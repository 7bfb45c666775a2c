"""Options of GRPO against plain GRPO: the same network, the same questions, as many rollouts, several seeds; one table.

    latentserve train compare --output runs/compare --variants plain,steer,8020+steer,noise:0.33

A variant is a shaping (`latentserve train grpo --shaping`), several with +, or noisy latents: `noise:0.33`, with their policy
term `policy:0.33`. `sft`, `distill` and `tip:0.5` are SFT on replies, on-policy distillation, and that of selected tokens, for
as many seconds of the processor (`--sft-seconds`) as GRPO takes. One works only where its mean beats plain GRPO's by more than
two standard errors of the paired difference over seeds. Every run is a directory with its own resumable state; seeds come one
after the other, so a comparison that is stopped has whole seeds. Run the same command again to go on.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from reasoning_net.analysis.trajectory import mean_and_error
from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Flat, Internal, commas
from reasoning_net.padding import padded
from reasoning_net.rollouts import Backend, think
from reasoning_net.segments import Segments
from reasoning_net.selection import share_of
from reasoning_net.shaping import SHAPINGS, Shapings
from reasoning_net.stages import grpo, sft
from reasoning_net.tables import table
from reasoning_net.tasks import LEARNT, Example, Task, TaskSpec
from reasoning_net.training import read_log, seconds_trained, training_device

_BATCH = 64
MEASURES = ("greedy", "pass@1", "pass@4", "entropy", "groups without variance")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareGrpo(grpo.GrpoConfig):
    """Settings for two cores: short questions, and the demo's network with fewer latents than it answers well with."""

    init: Path | None = None  # type: ignore[assignment]  # until `main` has one
    """Where all variants start: the output of `train sft`. Default: the demo's network."""
    output: Path
    """Directory of the runs; finished ones are kept."""
    task: Annotated[TaskSpec, grpo.Questions] = field(default_factory=lambda: TaskSpec(f"{LEARNT}@5"))
    steps: PositiveInt = 24
    questions: PositiveInt = 16
    max_prompt_tokens: PositiveInt = 96
    num_latents: PositiveInt = 2
    sampling: Annotated[grpo.GrpoSampling, Flat] = field(default_factory=lambda: grpo.GrpoSampling(12, 1.0, 1.0, 8))
    kl_weight: NonNegativeFloat = 0.0
    backend: Backend = "transformers"
    # What each variant has of its own, and what is measured at the end.
    evaluate_on: Annotated[NonNegativeInt, Internal] = 0
    shapings: Annotated[tuple[str, ...], Internal] = ()
    latent_noise: Annotated[NonNegativeFloat, Internal] = 0.0
    latent_policy: Annotated[bool, Internal] = False
    seed: Annotated[int, Internal] = 0
    select: Annotated[str | None, Internal] = None
    """SFT instead: sft, distill, or what `train sft --select` takes."""


@dataclass(frozen=True, slots=True)
class CompareConfig:
    recipe: Annotated[CompareGrpo, Flat]
    variants: Annotated[tuple[str, ...], commas(str)] = (
        "plain",
        *SHAPINGS,
        "seed:0.5",
        "noise:0.1",
        "policy:0.1",
        "sft",
        "distill",
        "tip",
    )
    """Comma-separated; plain is always one of them."""
    seeds: PositiveInt = 3
    """Of each variant."""
    sft_seconds: PositiveFloat = 45.0
    """Seconds of the processor that variants of SFT have."""
    test_on: PositiveInt = 300
    """Test questions: answered greedily, and four times at the rollouts' temperature."""


def main(config: CompareConfig) -> str:
    """Train and test what has no result yet; returns the table, which is also `table.md`, with `results.json`."""
    recipe = config.recipe
    variants = {name: variant(name, recipe) for name in dict.fromkeys(("plain", *config.variants))}
    recipe.output.mkdir(parents=True, exist_ok=True)
    start = recipe.init or _demo_network(recipe.output / "start")
    base, task = FrozenBase(recipe.model, training_device()), recipe.task.load()
    tested = itertools.islice(_short(task, base, recipe), config.test_on)
    examples = sorted(tested, key=lambda example: len(base.prompt_ids(example.messages)))

    def measured(directory: Path) -> Row:
        net, layout = sft.load_net(directory)
        return measure(net.to(base.device), base, layout.token_ids(base.tokenizer), task, examples, recipe)

    if not (recipe.output / "start.json").exists():
        (recipe.output / "start.json").write_text(json.dumps(measured(start)))
    for seed, (name, changed) in itertools.product(range(config.seeds), variants.items()):
        directory = _directory(recipe, name, seed)
        if not (directory / "result.json").exists():
            run = replace(changed, init=start, output=directory, seed=seed)
            if run.select is None:
                grpo.main(run)
            else:
                sft.main(_without_rewards(run, task.levels, config.sft_seconds))
            (directory / "result.json").write_text(json.dumps(measured(directory) | training_figures(directory / "run")))
        (recipe.output / "results.json").write_text(json.dumps(finished(config), indent=1))
        (recipe.output / "table.md").write_text(markdown(finished(config)) + "\n")
    return markdown(finished(config))


def finished(config: CompareConfig) -> list[Row]:
    """What has been measured of the variants so far, and before any of them."""
    recipe = config.recipe
    rows = [{"variant": "start", "seed": 0} | json.loads((recipe.output / "start.json").read_text())]
    for name, seed in itertools.product(dict.fromkeys(("plain", *config.variants)), range(config.seeds)):
        if (path := _directory(recipe, name, seed) / "result.json").exists():
            rows.append({"variant": name, "seed": seed} | json.loads(path.read_text()))
    return rows


def _directory(recipe: CompareGrpo, name: str, seed: int) -> Path:
    return recipe.output / name.replace(":", "-") / str(seed)


def variant(name: str, recipe: CompareGrpo) -> CompareGrpo:
    """Raises `StageError` for one that there is not."""
    if name == "plain":
        return recipe
    if name in ("sft", "distill") or name.startswith("tip"):
        share_of(None if name in ("sft", "distill") else name)
        return replace(recipe, select=name)
    kind, _, scale = name.partition(":")
    if kind not in ("noise", "policy"):
        names = tuple(name.split("+"))
        Shapings.named(names)
        return replace(recipe, shapings=names)
    try:
        return replace(recipe, latent_noise=float(scale), latent_policy=kind == "policy")
    except ValueError as error:
        raise StageError(f"The variant {name} says how much noise: {kind}:0.1.") from error


def _without_rewards(run: CompareGrpo, levels: int, seconds: float) -> sft.SftConfig:
    """SFT from the same network, at the same rates, on questions as long."""
    assert run.init is not None, "`main` has given one"
    return sft.SftConfig(
        output=run.output, model=run.model, task=run.task, init=run.init, seed=run.seed, seconds=seconds,
        processor_seconds=True, batch_size=run.questions, num_latents=run.num_latents, nested_from=1.0, milestone_weight=0.0,
        start_level=levels, max_prompt_tokens=run.max_prompt_tokens, distill_share=float(run.select != "sft"),
        select=run.select if run.select not in ("sft", "distill") else None,
        optimizer=sft.SftOptimizer(
            muon_lr=run.optimizer.muon_lr, adamw_lr=run.optimizer.adamw_lr, weight_decay=0.0, warmup_steps=5, schedule="cosine"
        ),
    )  # fmt: skip


def _demo_network(directory: Path) -> Path:
    bundle = Bundle.load(DEMO_BUNDLE)
    net = bundle.reasoning_net()
    assert net is not None, "the demo's bundle has one"
    sft.save(net, bundle.manifest.layout, directory)
    return directory


def _short(task: Task, base: FrozenBase, recipe: CompareGrpo) -> Iterator[Example]:
    for example in task.examples(2026, "test"):
        if len(base.prompt_ids(example.messages)) <= recipe.max_prompt_tokens:
            yield example


@torch.no_grad()
def measure(
    net: ReasoningNet, base: FrozenBase, layout: LayoutIds, task: Task, examples: list[Example], recipe: CompareGrpo
) -> Row:  # fmt: skip
    """Greedy accuracy, pass@1 and pass@4 of four samples, and the mean entropy (nats) of a greedy reply's last number."""
    segments, sampling = Segments(base.tokenizer), recipe.sampling
    greedy, samples, entropies = list[bool](), list[list[bool]](), list[float]()
    torch.manual_seed(0)
    for at in range(0, len(examples), _BATCH):
        batch = examples[at : at + _BATCH]
        prompt = base.read([base.prompt_ids(example.messages) for example in batch])
        prefix = base.prefix(layout, think(net, prompt, recipe.num_latents))
        written = base.generate(prompt, prefix, sampling.max_tokens)
        drawn = base.generate(prompt, prefix, sampling.max_tokens, copies=4, temperature=sampling.temperature or 1.0)
        right = [
            task.is_correct(text, batch[i // 4].answer) for i, text in enumerate(base.tokenizer.batch_decode(drawn))
        ]  # fmt: skip
        samples += [right[i : i + 4] for i in range(0, len(right), 4)]
        texts = base.tokenizer.batch_decode(written)
        greedy += [task.is_correct(text, example.answer) for text, example in zip(texts, batch, strict=True)]
        logits = base.answer_logits(prompt.copy(), prefix, padded(written).clamp(min=0).to(base.device))
        entropy = torch.distributions.Categorical(logits=logits.float()).entropy()  # (B, Y)
        for row, ids in zip(entropy, written, strict=True):
            entropies += row[segments.last_number(ids, range(len(ids)))].tolist()
    return {
        "greedy": statistics.fmean(greedy),
        "pass@1": statistics.fmean(itertools.chain(*samples)),
        "pass@4": statistics.fmean(map(any, samples)),
        "entropy": statistics.fmean(entropies),
    }


def training_figures(run: Path) -> Row:
    """Means over a run's steps, and its seconds."""
    log = read_log(run / "log.jsonl")
    names = ("reward", "groups without variance", "mean weight", "tokens used", "entropy of used tokens")
    means = {name: statistics.fmean(one) for name in names if (one := [r[name] for r in log if name in r])}
    return means | {"seconds": round(seconds_trained(run), 1), "steps": len(log)}


def markdown(rows: list[Row]) -> str:
    """Mean ± standard error over seeds; where it is more than two of the paired difference above plain GRPO, in bold."""
    by = {name: [row for row in rows if row["variant"] == name] for name in dict.fromkeys(row["variant"] for row in rows)}
    plain = {row["seed"]: row for row in by.get("plain", [])}
    header = ["variant", "seeds", *MEASURES, "tokens used", "seconds"]
    return table(header, ([name, len(group), *_cells(name, group, plain)] for name, group in by.items()))


def _cells(name: str, group: list[Row], plain: dict[int, Row]) -> list[str]:
    cells = []
    for measure_ in MEASURES:
        values = [row[measure_] for row in group if measure_ in row]
        if not values:
            cells.append("")
            continue
        mean, error = mean_and_error(values)
        cell = f"{mean:.3f}" + (f" ± {error:.3f}" if len(values) > 1 else "")
        if name not in ("start", "plain") and measure_ in MEASURES[:3]:
            gains = [row[measure_] - plain[row["seed"]][measure_] for row in group if row["seed"] in plain]
            gain, of = mean_and_error(gains) if gains else (math.nan, math.nan)
            cell = f"**{cell}**" if len(values) > 1 and gain > 2 * of else cell
        cells.append(cell)
    used = [row["tokens used"] for row in group if "tokens used" in row]
    seconds = [row["seconds"] for row in group if "seconds" in row]
    return [*cells, f"{statistics.fmean(used):.2f}" if used else "", f"{statistics.fmean(seconds):.0f}" if seconds else ""]
