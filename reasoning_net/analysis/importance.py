"""Which steps of a chain does the answer need, and does the model know while it writes them?

    latentserve train traces --split validation --n 1000 --output runs/traces
    latentserve analyse importance --traces runs/traces/traces.jsonl --output runs/importance

After "Reasoning models know what's important, and encode it in their activations" (2604.18307): causal labels (`labels`,
`causal`), probes and what they have to beat (`step_probe`, `step_features`), a second base that reads the first one's chains;
and ours, answers from the most important steps alone (`compress`), and what wrong chains neglect (`neglect`).
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from pydantic import PositiveInt
from torch import Tensor
from tqdm import tqdm

from reasoning_net.analysis import neglect, step_report
from reasoning_net.analysis.compress import curve
from reasoning_net.analysis.judge import JudgeOptions, Subject
from reasoning_net.analysis.labels import EASY, SHORTCUT, WRONG, Labelled, Labeller, Shortcuts
from reasoning_net.analysis.step_features import (
    ACTIVATIONS,
    CONTEXT_FREE,
    KNOWN,
    OF_PLACE,
    OTHER,
    RANDOM,
    SURFACE,
    context_free,
    position,
    random_base,
    surface,
)  # fmt: skip
from reasoning_net.analysis.step_probe import ALL_OTHERS, Rows, compare, fit_linear, fit_mlp, held_out, split
from reasoning_net.bundle import fingerprint
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.options import Flat, LayoutFile, Model, Questions, Share, commas
from reasoning_net.stages.traces import Trace, read_traces
from reasoning_net.step_probe import StepProbe, StepProbeConfig, StepReader
from reasoning_net.tasks import TaskSpec

_FEWEST_CHAINS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceConfig:
    traces: Path
    """traces.jsonl of `train traces`."""
    output: Path
    """Directory of labels.jsonl, scores.jsonl, importance.safetensors (the probe), importance.json and importance.png; labels
    that are found there are kept."""
    model: Model = str(DEMO_MODEL)
    other: str | None = None
    """A second base: what it makes of the first one's chains, and whether that tells what is important, too."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 1000
    """Chains."""
    steps: Literal["sentences", "lines"] = "sentences"
    """What a step is; the paper's are sentences."""
    shortcuts: Shortcuts = "all"
    """Which steps are taken out first: all that suffice alone or state the answer, as in the paper, or those that state it."""
    judge: Annotated[JudgeOptions, Flat] = field(default_factory=JudgeOptions)
    seeds: PositiveInt = 3
    """Splits, and trainings, of each probe."""
    keep: Annotated[tuple[Share, ...], commas(float)] = (0.1, 0.3, 0.5)
    """Shares of a chain's steps to answer from."""
    diagnosed: PositiveInt = 40
    """Wrong chains whose neglected steps are looked for, beside as many right ones."""
    batch_size: PositiveInt = 32
    """Chains that are labelled side by side, between two saves."""
    layout: LayoutFile = None
    seed: Annotated[int, Parameter(help="Of the samples.")] = 0


def main(config: ImportanceConfig) -> str:
    """Writes the directory; returns the tables."""
    traces = [trace for trace in read_traces(config.traces) if trace.reply][: config.n]
    if not traces:
        raise StageError(f"{config.traces} has no finished chain.")
    base = FrozenBase(config.model)
    layout = base.layout(config.layout)
    study = Study(
        config, base, StepReader(base, layout.token_ids(base.tokenizer), sentences=config.steps == "sentences"), traces
    )
    figures: dict[str, Any] = {"labels": step_report.labels(study.labelled)}
    rows = study.rows()
    figures["probes"] = compare(rows, config.seeds)
    probe = study.train(rows)
    probe.save(config.output / "importance.safetensors")
    figures["answers"] = study.answers(rows, probe)
    figures["neglected"] = study.neglected(rows, probe, layout.after_latents)
    (config.output / "importance.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    step_report.plot(figures["answers"], config.output / "importance.png")
    return step_report.markdown(figures)


class Study:
    """Chains of one base, with the labels of their steps."""

    def __init__(self, config: ImportanceConfig, base: FrozenBase, reader: StepReader, traces: Sequence[Trace]) -> None:
        self._config, self._base, self._reader, self._traces = config, base, reader, traces
        self._task = config.task.load()
        self._other = self._sibling(FrozenBase(config.other)) if config.other else None
        config.output.mkdir(parents=True, exist_ok=True)
        self._labeller = Labeller(reader, self._task, config.judge, config.shortcuts, config.seed)
        self.labelled = self._labeller.write(traces, config.output / "labels.jsonl", config.batch_size)

    def rows(self) -> Rows:
        """The steps that have labels, with all that a probe may read of them. Raises `StageError` where there are too few."""
        wanted = [one for one in self.labelled if one.labels]
        if (both := sum({"important", "removable"} <= set(one.labels) for one in wanted)) < _FEWEST_CHAINS:
            raise StageError(
                f"Of {len(self.labelled)} chains {both} have both important and removable steps, too few to train on: "
                f"{step_report.why_not(self.labelled)}. Look into more chains, or into others: --n, --traces."
            )
        chosen = [[at for at, label in enumerate(one.labels) if label != SHORTCUT] for one in wanted]
        pairs = [(one, at) for one, of in zip(wanted, chosen, strict=True) for at in of]
        return Rows(
            chains=torch.tensor([one.trace for one, _ in pairs]),
            families=[one.family for one, _ in pairs],
            places=torch.tensor([position(len(one.steps))[at] for one, at in pairs]),
            important=torch.tensor([float(one.labels[at] == "important") for one, at in pairs]),
            removable=torch.tensor([float(one.labels[at] == "removable") for one, at in pairs]),
            tokens=[self._reader.encode(one.steps[at].strip()) for one, at in pairs],
            features=self._features(wanted, chosen),
        )

    def _features(self, wanted: Sequence[Labelled], chosen: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """(n, F) of each kind, for the chosen steps of these chains."""
        readers = {ACTIVATIONS: self._reader, RANDOM: self._sibling(random_base(self._base, self._config.seed))}
        if self._other:
            readers[OTHER] = self._other
        found: dict[str, list[Tensor]] = {kind: [] for kind in (*readers, CONTEXT_FREE, SURFACE, KNOWN)}
        texts = [one.steps[at] for one, of in zip(wanted, chosen, strict=True) for at in of]
        alone = context_free(self._reader, texts)
        found[CONTEXT_FREE].append(torch.stack([alone[text.strip()] for text in texts]))
        for one, of in tqdm(zip(wanted, chosen, strict=True), desc="activations", unit="chain", total=len(wanted)):
            for kind, reader in readers.items():
                prompt = reader.base.prompt_ids(self._traces[one.trace].messages)
                found[kind].append(reader.states(prompt, one.steps)[list(of)])
            found[SURFACE].append(surface(one.steps)[list(of)])
            found[KNOWN].append(found[SURFACE][-1][:, OF_PLACE:])
        return {kind: torch.cat(parts) for kind, parts in found.items()}

    def _sibling(self, base: FrozenBase) -> StepReader:
        return StepReader(base, base.layout().token_ids(base.tokenizer), sentences=self._config.steps == "sentences")

    def train(self, rows: Rows) -> StepProbe:
        """The probe that is stored: of the first split."""
        seen, _, weights = split(rows, 0, ALL_OTHERS)
        mlp = fit_mlp(rows.features[ACTIVATIONS][seen], rows.important[seen], weights[seen])
        config = StepProbeConfig(base=fingerprint(self._config.model), sentences=self._config.steps == "sentences")
        return StepProbe(config, mlp)

    def answers(self, rows: Rows, probe: StepProbe) -> dict[str, Any]:
        """From parts of right chains of questions that the probe has not seen, without the steps that state the answer."""
        used, _, weights = split(rows, 0, ALL_OTHERS)
        baseline = fit_linear(rows.features[SURFACE][used], rows.important[used], weights[used])
        seen = _seen(rows)
        subjects, families = list[Subject](), list[str]()
        scores: dict[str, list[list[float]]] = {name: [] for name in step_report.CHOICES}
        with (self._config.output / "scores.jsonl").open("w") as lines:
            for one in tqdm(self.labelled, desc="scores", unit="chain"):
                trace = self._traces[one.trace]
                prompt = self._base.prompt_ids(trace.messages)
                said = probe.scores(self._reader.states(prompt, one.steps))
                record = asdict(one) | {"scores": [round(score, 4) for score in said], "trained on": one.trace in seen}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                left = [at for at, step in enumerate(one.steps) if not self._labeller.states_answer(step, trace.answer)]
                if one.trace in seen or one.excluded in (EASY, WRONG) or not left:
                    continue
                subjects.append(Subject(prompt, tuple(one.steps[at] for at in left), trace.answer))
                families.append(one.family)
                rng, plain = random.Random(one.trace), baseline(surface(one.steps)).tolist()
                of = ([said[at] for at in left], [plain[at] for at in left], [rng.random() for _ in left], [*map(float, left)])
                for name, values in zip(step_report.CHOICES, of, strict=True):
                    scores[name].append(values)
        tokens = self._config.judge.max_tokens
        whole = curve(self._reader, self._task, subjects, {"": scores[step_report.PROBE]}, (1.0,), tokens)[""]
        found = curve(self._reader, self._task, subjects, scores, self._config.keep, tokens)
        return step_report.answers({name: of | whole for name, of in found.items()}, families)

    def neglected(self, rows: Rows, probe: StepProbe, closing: str) -> dict[str, Any]:
        """Of wrong chains, and of right ones that are as hard and that the probe has not seen."""
        wrong = [at for at, trace in enumerate(self._traces) if not trace.correct][: self._config.diagnosed]
        seen = _seen(rows)
        right = {at: trace.level for at, trace in enumerate(self._traces) if trace.correct and at not in seen}
        beside = [at for at in (_take(right, self._traces[one].level) for one in wrong) if at is not None]
        return neglect.summarise(
            neglect.diagnose(self._reader, probe, closing, [(at, self._traces[at]) for at in (*beside, *wrong)])
        )


def _seen(rows: Rows) -> set[int]:
    """Chains that the stored probe was trained on."""
    return set(rows.chains[~held_out(rows.chains, seed=0)].tolist())


def _take(levels: dict[int, int], level: int) -> int | None:
    """A chain of this level, each only once."""
    found = next((at for at, of in levels.items() if of == level), None)
    if found is not None:
        del levels[found]
    return found
