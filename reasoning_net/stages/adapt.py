"""Adapt a base of one's own: look at it, say what can be gained, then do what was asked for.

    latentserve adapt Qwen/Qwen3-1.7B --data openai/gsm8k:main:train --preset gsm8k --output runs/qwen3
    latentserve adapt … --probe                 minutes: a probe, its calibration, chains that end early
    latentserve adapt … --latents --grpo 100    hours: traces, SFT, GRPO, and all of that

Every stage runs in a process of its own and has a directory of its own, which is its checkpoint. What it came to stands in
`done/`, the plan in `plan.json`: made once, since memory and speed are others at another time, so that a run that was killed
comes to the same figures.
"""

import json
import math
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from reasoning_net.analysis import exits
from reasoning_net.batches import POOL_BATCHES
from reasoning_net.bundle import Bundle
from reasoning_net.card import model_card
from reasoning_net.demo.questions import Split
from reasoning_net.errors import StageError
from reasoning_net.gains import Asked, Gains
from reasoning_net.options import LayoutFile, Questions, Seed, ThinkingPrompt
from reasoning_net.recipe import MAX_LATENTS, Costs, DataShape, Recipe
from reasoning_net.stages import calibrate, fit, grpo, look, pack, sft, traces
from reasoning_net.stages.progress import Progress, say, write
from reasoning_net.tasks import Task, TaskSpec
from reasoning_net.training import duration

Kind = Literal["probe", "latents", "grpo"]
EXIT_LOSS = 0.005
_FEWEST_TRACES = 32
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    output: Path
    """Directory of everything; a run found there goes on."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    probe: Annotated[bool, Parameter(negative="")] = False
    """Fit a probe that chooses between direct and explicit answers, and end chains early where answers are sure."""
    latents: Annotated[bool, Parameter(negative="")] = False
    """Train a reasoning network first: latents instead of chains."""
    grpo: NonNegativeInt = 0
    """Steps of reinforcement after SFT."""
    hours: PositiveFloat | None = None
    """That latents may take: steps and questions become fewer. Default: what the recipe says."""
    n: PositiveInt = 48
    """Questions of the sample that says what can be gained."""
    max_thinking_tokens: PositiveInt | None = None
    """Limit on thinking and answer in that sample. Default: 1,024, or what the base can take."""
    quick: Annotated[bool, Parameter(negative="")] = False
    """Every stage in minutes, to see the way: the answers of a network that was trained for so short a time are guesses."""
    anyway: Annotated[bool, Parameter(negative="")] = False
    """Train even where the sample says that there is nothing to gain."""
    layout: LayoutFile = None
    thinking_prompt: ThinkingPrompt = None
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What was settled after the look."""

    data: DataShape
    costs: Costs
    recipe: Recipe
    gains: Gains

    def hours(self, kind: Kind, steps: int) -> str:
        seconds = self.recipe.seconds(self.costs, self.data, steps, has_network=kind != "probe")
        return duration(sum(seconds[name] for name in STAGES[kind]))


STAGES: dict[Kind, tuple[str, ...]] = {
    "probe": ("fit", "exits"),
    "latents": ("traces", "sft", "fit", "exits"),
    "grpo": ("traces", "sft", "grpo", "fit", "exits"),
}


def main(model: str, config: AdaptConfig) -> str:
    """Returns what there is now, and the command that serves it."""
    settle(model, config)
    say(f"looking at {model}")
    base, task = look.look(model, config.layout, config.thinking_prompt), config.task.load()
    layout = config.output / "layout.json"
    layout.write_text(base.layout.model_dump_json(indent=2) + "\n")
    config = replace(config, layout=layout)  # of every stage
    kind: Kind | None = "grpo" if config.grpo else "latents" if config.latents else "probe" if config.probe else None
    say(*base.sentences())
    if kind in ("latents", "grpo"):
        base.layout.check_latents()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(kv_gib(base)))
    progress = Progress(config.output)
    plan = plan_of(base, task, config, progress)
    times = f"Here a probe takes about {plan.hours('probe', 0)}, latents about {plan.hours('latents', 0)}."
    say(*plan.gains.sentences(), times)
    if kind is None:
        return "Go on with --probe or --latents, and the same --output."
    known = sum(task.size(split) or 0 for split in splits_of(kind, task))
    if plan.data.train is not None and known < fit.FEWEST:
        raise StageError(
            f"A router takes {fit.FEWEST} questions that nothing was trained on, and there are {known}: a tenth of the rows "
            "with --latents, nine tenths with --probe alone. Give more rows, and another --output."
        )
    if plan.gains.gap <= 0 and not config.anyway:
        raise StageError("There is nothing to gain on these questions (see above), so nothing was trained. --anyway does it.")
    tag = f"grpo-{config.grpo}" if kind == "grpo" else kind
    bundle = made(kind, tag, base, task, config, plan, progress)
    command = f"latentserve serve --model {shlex.quote(model)} --bundle {shlex.quote(str(bundle))}"
    of_probe = ("max_reply_tokens", "max_thinking_tokens", "fit_questions", "explicit_questions", "exit_questions")
    recipe = {name: value for name, value in asdict(plan.recipe).items() if kind != "probe" or name in of_probe}
    figures = {"adapt, before": asdict(plan.gains), "adapt, recipe": recipe}
    for plot in (config.output / "sft" / "run" / "curves.png" if kind != "probe" else None, config.output / tag / "exits.png"):
        if plot and plot.is_file():
            shutil.copyfile(plot, bundle / plot.name)
    packed, plots = Bundle.load(bundle), [path.name for path in sorted(bundle.glob("*.png"))]
    card = model_card(packed.manifest, str(bundle), base=model, fingerprint=packed.fingerprint(), figures=figures, plots=plots)
    (bundle / "README.md").write_text(card)
    return f"{card}\nServe it: {command}"


def settle(model: str, config: AdaptConfig) -> None:
    """Raise `StageError` where the directory is of another base, other data or other settings."""
    mine = {
        name: value for name, value in asdict(config).items() if name not in ("output", "probe", "latents", "grpo", "anyway")
    }
    settings = json.loads(
        json.dumps({"model": str(Path(model).resolve()) if Path(model).is_dir() else model} | mine, default=str)
    )
    path = config.output / "adapt.json"
    config.output.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.is_file() else settings
    differ = [f"{name} was {found.get(name)}, is {value}" for name, value in settings.items() if found.get(name) != value]
    if differ:
        raise StageError(f"{config.output} was begun with other settings ({'; '.join(differ)}). Give another --output.")
    write(path, settings)


def plan_of(base: look.Base, task: Task, config: AdaptConfig, progress: Progress) -> Plan:
    """The plan of an earlier run, or what sample and trial give."""
    path = config.output / "plan.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        return Plan(DataShape(**kept["data"]), Costs(**kept["costs"]), Recipe(**kept["recipe"]), Gains(**kept["gains"]))
    limit = min(config.max_thinking_tokens or 1024, base.shape.max_tokens // 2)
    sampled = look.SampleConfig(
        model=base.model, output=config.output / "look", task=config.task, n=config.n, max_thinking_tokens=limit,
        layout=config.layout, seed=config.seed,
    )  # fmt: skip
    asked = [Asked(**one) for one in progress.stage("sample", _sampled, sampled)]
    data = data_of(asked, task)
    guess = Recipe.of(base.shape, data, base.machine)
    first = sft_config(base.model, guess, config, task)
    seconds = progress.stage("trial", look.trial, first, data.usual_prompt_tokens, data.reply_tokens)
    tokens = sum(one.explicit_tokens for one in asked)
    costs = Costs(
        seconds, tokens / sum(one.explicit_seconds for one in asked), sum(one.direct_seconds for one in asked) / len(asked)
    )
    recipe = Recipe.of(base.shape, data, base.machine, costs)
    recipe = recipe.quick() if config.quick else recipe
    if config.hours:
        recipe = recipe.within(config.hours, costs, data, config.grpo)
    plan = Plan(data, costs, recipe, Gains.of(asked))
    write(path, asdict(plan))
    return plan


def _sampled(config: look.SampleConfig) -> list[dict[str, Any]]:
    return [asdict(asked) for asked in look.sample(config)]


def data_of(asked: Sequence[Asked], task: Task) -> DataShape:
    """Quantiles of a sample."""
    chains = [one.explicit_tokens for one in asked]
    return DataShape(
        train=task.size("train"),
        held_out=task.size("validation"),
        usual_prompt_tokens=quantile([one.prompt_tokens for one in asked], 0.5),
        prompt_tokens=quantile([one.prompt_tokens for one in asked], 0.99),
        reply_tokens=max(1, quantile([one.reply_tokens for one in asked], 0.99)),
        chain_tokens=quantile(chains, 0.5),
        longest_chain_tokens=quantile(chains, 0.99),
    )


def quantile(values: Sequence[int], share: float) -> int:
    """The least of the values that no more than 1 − share of them exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def sft_config(model: str, recipe: Recipe, config: AdaptConfig, task: Task) -> sft.SftConfig:
    is_made = task.size("train") is None
    learnt = config.output / "traces" / "traces.jsonl"
    return sft.SftConfig(
        model=model,
        output=config.output / "sft",
        task=config.task if is_made else TaskSpec(str(learnt), preset="traces", whole=True),
        layout=config.layout,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        num_latents=recipe.trained_latents,
        max_latents=MAX_LATENTS,
        min_latents=1,
        hidden_size=recipe.hidden_size,
        num_layers=recipe.num_layers,
        max_prompt_tokens=recipe.max_prompt_tokens,
        max_reply_tokens=recipe.max_reply_tokens,
        checkpointing=recipe.checkpointing,
        save_every=min(200, max(POOL_BATCHES, recipe.steps // 5 // POOL_BATCHES * POOL_BATCHES)),
        seed=config.seed,
        optimizer=sft.SftOptimizer(muon_lr=recipe.muon_lr, adamw_lr=recipe.adamw_lr, warmup_steps=min(60, recipe.steps // 10)),
    )


def made(kind: Kind, tag: str, base: look.Base, task: Task, config: AdaptConfig, plan: Plan, progress: Progress) -> Path:
    """Run the stages that are missing; the bundle's directory. Each kind has one of its own."""
    recipe, model, bundle = plan.recipe, base.model, config.output / f"bundle-{tag}"
    seconds = recipe.seconds(plan.costs, plan.data, config.grpo, has_network=kind != "probe")
    names = {"fit": f"fit-{tag}", "exits": f"exits-{tag}", "grpo": f"grpo-{config.grpo}"}
    progress.expect({names.get(name, name): seconds[name] for name in STAGES[kind] if seconds[name]})
    net = None
    if kind != "probe":
        net = trained(base, task, config, plan, progress)
    packing = pack.PackConfig(
        model=model, output=bundle, net=net, num_latent_tokens=recipe.num_latents, layout=config.layout,
        trained_on=config.task.name if net else None,
    )  # fmt: skip
    progress.stage(f"pack-{tag}", _packed, packing)
    splits = splits_of(kind, task)
    fitting = fit.FitConfig(
        bundle=bundle, model=model, task=config.task, n=recipe.fit_questions, explicit_questions=recipe.explicit_questions,
        max_reply_tokens=recipe.max_reply_tokens, max_thinking_tokens=recipe.max_thinking_tokens,
        ladder=recipe.ladder if net else (), splits=splits, observations=config.output / tag / "observations", seed=config.seed,
    )  # fmt: skip
    progress.stage(f"fit-{tag}", fit.main, fitting)
    if base.ends_chains and plan.gains.ended > _MOSTLY:
        looked = exits.ExitsConfig(
            output=config.output / tag, model=model, bundle=bundle, task=config.task, n=recipe.exit_questions,
            split=splits[-1], batch_size=20, max_chain_tokens=recipe.max_thinking_tokens,
            trial_tokens=recipe.max_reply_tokens, seed=config.seed,
        )  # fmt: skip
        progress.stage(f"exits-{tag}", exits.main, looked)
        ending = calibrate.CalibrateConfig(bundle, exit_loss=EXIT_LOSS, chains=config.output / tag / "chains.jsonl")
        progress.stage(f"calibrate-{tag}", calibrate.main, ending)
    return bundle


def splits_of(kind: Kind, task: Task) -> tuple[Split, ...]:
    """Where the router's questions come from: rows of training, too, where nothing is trained on them."""
    return ("validation",) if kind != "probe" or task.size("train") is None else ("validation", "train")


def trained(base: look.Base, task: Task, config: AdaptConfig, plan: Plan, progress: Progress) -> Path:
    """The directory of the network."""
    recipe = plan.recipe
    if recipe.trace_questions:
        thinking = traces.TracesConfig(
            model=base.model, output=config.output / "traces", task=config.task, n=recipe.trace_questions, batch_size=32,
            sampling=traces.TracesSampling(max_tokens=recipe.max_thinking_tokens), layout=config.layout, seed=config.seed,
        )  # fmt: skip
        counts = progress.stage("traces", traces.main, thinking)
        right = round(counts["questions"] * counts["correct"])
        if right < _FEWEST_TRACES:
            raise StageError(
                f"Only {right} of {counts['questions']} explicit answers are right, too few to train on: a network learns the "
                "base's own replies. Give easier questions, or longer chains: --max-thinking-tokens, and another --output."
            )
    learning = sft_config(base.model, recipe, config, task)
    progress.stage("sft", sft.main, learning)
    if not config.grpo:
        return learning.output
    reinforcing = grpo.GrpoConfig(
        init=learning.output, output=config.output / f"grpo-{config.grpo}", model=base.model, task=config.task,
        steps=config.grpo, num_latents=recipe.num_latents, micro_batch=recipe.batch_size, seed=config.seed,
        sampling=replace(grpo.GrpoSampling(), max_tokens=recipe.max_reply_tokens),
    )  # fmt: skip
    if config.quick:
        reinforcing = replace(reinforcing, questions=8, evaluate_on=32, save_every=1)
    progress.stage(f"grpo-{config.grpo}", grpo.main, reinforcing)
    return reinforcing.output


def _packed(config: pack.PackConfig) -> str:
    return pack.main(config).fingerprint()


def kv_gib(base: look.Base) -> int:
    """Of an engine on a CPU: room for its longest prompt, and for some that are written at once."""
    tokens = max(base.shape.max_tokens, 16_384)
    return max(1, min(math.ceil(tokens * base.shape.kv_bytes(4) / 2**30), base.machine.memory_bytes // 2**32))
