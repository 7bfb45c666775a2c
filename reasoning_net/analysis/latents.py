"""Are the latents needed, and do they carry the answer? Put others in their place, and see what is answered.

    latentserve analyse latents --bundle runs/bundle --output runs/latents

After "Are latent reasoning models easily interpretable?" (2604.04902), where answers to logic puzzles were the same without
latents. Its two figures are the first and the stable match: the fewest latents with which the answer is that of all, and from
which on it stays. The other arms, and the verdict, are ours. What is put in place of latents is as loud as they are.

Shapes: n questions, B of a batch, N latent tokens, d hidden size, Y answer tokens, V vocabulary.
"""

import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from tqdm import tqdm

from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_BUNDLE, DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import Layout, LayoutIds
from reasoning_net.manifest import AUDIT
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Internal, Model, Questions, Seed
from reasoning_net.padding import padded
from reasoning_net.plots import plot_lines
from reasoning_net.precision import found_device
from reasoning_net.rollouts import think
from reasoning_net.stages.traces import keep_whole_batches
from reasoning_net.tables import table
from reasoning_net.tasks import Example, TaskSpec, with_answers

Verdict = Literal["carried", "partly", "ornament"]
ALL, DIRECT, MEAN, SWAPPED = "all latents", "no thinking (direct)", "mean of all questions", "those of another question"
SWAPPED_ALIKE = f"{SWAPPED}, as many steps"
_USED = 0.02  # a row is used where leaving it out changes more answers


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentsConfig:
    output: Path
    """Directory of answers.jsonl, latents.json and latents.png; a run found there goes on."""
    bundle: Path = DEMO_BUNDLE
    """Whose network; the verdict is written into it."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 1000
    """Held-out questions."""
    num_latent_tokens: PositiveInt | None = None
    """As many as the bundle serves, by default."""
    batch_size: PositiveInt = 125
    """Questions between two saves."""
    max_tokens: PositiveInt = 24
    """Limit on an answer."""
    store: bool = True
    """Write the verdict into the bundle."""
    device: Annotated[str, Internal] = field(default_factory=found_device)
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What was answered to one question, by what stood in place of its latents."""

    level: int
    donors: dict[str, int]
    """Whose latents stood in its place, by arm: numbers of questions."""
    right: dict[str, bool]
    final: dict[str, str | None]
    """The final answer, by arm."""
    divergence: dict[str, float]
    """Nats from what the base predicts with all latents to what it predicts in an arm, at that token of the answer where they
    differ most."""
    prefixes: list[bool]
    """Whether the first 0, 1, …, N - 1 latents alone give the same answer, token by token."""
    without: list[bool]
    """Whether all but row 0, 1, …, N - 1 (the mean in its place) do."""


def main(config: LatentsConfig) -> str:
    """Writes `answers.jsonl`, `latents.json`, `latents.png`, and the verdict into the bundle; returns the tables."""
    bundle, net, number = load_network(config.bundle, config.model, config.num_latent_tokens)
    rows = _answer(config, net.to(config.device), bundle.manifest.layout, number)
    figures = summarise(rows)
    (config.output / "latents.json").write_text(json.dumps(figures, indent=2) + "\n")
    _plot(rows, config.output / "latents.png")
    if config.store:
        kept = {"questions", "latents", "verdict", "necessity", "carriage", "used rows"}
        stored = {name: value for name, value in figures.items() if name in kept}
        bundle.update(scores=bundle.manifest.scores | {AUDIT: stored})
    return markdown(figures)


def load_network(directory: Path, model: str, num_latents: int | None) -> tuple[Bundle, ReasoningNet, int]:
    """A bundle of this base, its network, and the number of latents to look at: as many as it serves, by default."""
    bundle = Bundle.load(directory)
    bundle.check_base(model)
    net = bundle.reasoning_net()
    if net is None:
        raise StageError(f"{directory} has no reasoning network: there are no latents to look at.")
    return bundle, net, num_latents or bundle.manifest.num_latent_tokens or net.config.num_latent_tokens


@torch.no_grad()
def _answer(config: LatentsConfig, net: ReasoningNet, prompt_layout: Layout, number: int) -> list[Row]:
    task = config.task.load()
    base = FrozenBase(config.model, config.device)
    layout = prompt_layout.token_ids(base.tokenizer)
    examples = with_answers(task, config.seed, "test", config.n)
    if len(examples) < 2:
        raise StageError("There are fewer than two held-out questions: nothing can be exchanged between them.")
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "answers.jsonl"
    done = keep_whole_batches(path, config.batch_size)

    def read(batch: Sequence[Example]) -> Prompt:
        return base.read([base.prompt_ids(example.messages) for example in batch])

    def latents(batch: Sequence[Example]) -> Tensor:
        return think(net, read(batch), number).cpu()

    batches = [examples[at : at + config.batch_size] for at in range(0, len(examples), config.batch_size)]
    z = torch.cat([latents(batch) for batch in tqdm(batches, desc="latents", unit="batch")])  # (n, N, d)
    arms = Arms(z, [example.level for example in examples], config.seed)
    with tqdm(total=len(examples), initial=done, desc="answers", unit="question") as progress, path.open("a") as lines:
        for at in range(done, len(examples), config.batch_size):
            batch = examples[at : at + config.batch_size]
            asked = Asked(base, layout, read(batch), config.max_tokens)
            replies = asked.replies(arms, slice(at, at + len(batch)))
            rows = [
                Row(
                    example.level,
                    {arm: int(donors[at + index]) for arm, donors in arms.donors.items()},
                    {arm: task.is_correct(texts[index], example.answer) for arm, texts in replies.texts.items()},
                    {arm: task.final_answer(texts[index]) for arm, texts in replies.texts.items()},
                    {arm: values[index] for arm, values in replies.divergence.items()},
                    [same[index] for same in replies.prefixes],
                    [same[index] for same in replies.without],
                )
                for index, example in enumerate(batch)
            ]
            lines.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
            lines.flush()
            progress.update(len(batch))
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


class Arms:
    """What stands in place of the latents z, (n, N, d)."""

    def __init__(self, z: Tensor, levels: Sequence[int], seed: int) -> None:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.z = z
        self.mean = as_loud(z.mean(0).expand_as(z), z)
        self.donors = {SWAPPED_ALIKE: donors(levels, rng), SWAPPED: donors([0] * len(levels), rng)}
        order = torch.rand(z.shape[:2], generator=generator).argsort(1)[..., None].expand_as(z)
        self.others: dict[str, Tensor] = {
            MEAN: self.mean,
            **{arm: as_loud(z[torch.tensor(whose)], z) for arm, whose in self.donors.items()},
            "its own in another order": as_loud(z.gather(1, order), z),
            "noise": as_loud(torch.randn(z.shape, generator=generator), z),
            "its first, again and again": as_loud(z[:, :1].expand_as(z), z),
        }


def as_loud(other: Tensor, z: Tensor) -> Tensor:
    """Each row with the root mean square of the latent that it replaces."""
    rms, own = (tensor.pow(2).mean(-1, keepdim=True).sqrt() for tensor in (z, other))
    return other * rms / own.clamp(min=1e-12)


def donors(groups: Sequence[int], rng: random.Random) -> list[int]:
    """For each question another one of its group, each of them once; of a group of one, the next of all questions."""
    whose = [(index + 1) % len(groups) for index in range(len(groups))]
    for group in sorted(set(groups)):
        members = [index for index, of in enumerate(groups) if of == group]
        rng.shuffle(members)
        if len(members) > 1:
            for member, other in zip(members, [*members[1:], members[0]], strict=True):
                whose[member] = other
    return whose


@dataclass(frozen=True, slots=True)
class Replies:
    """Of a batch; by arm, or by the row of the latents that is cut at, or left out."""

    texts: dict[str, list[str]]
    divergence: dict[str, list[float]]
    prefixes: list[list[bool]]
    without: list[list[bool]]


class Asked:
    """A batch of questions that the base has read, and its answers after one thing or another."""

    def __init__(self, base: FrozenBase, layout: LayoutIds, prompt: Prompt, max_tokens: int) -> None:
        self._base, self._layout, self._prompt, self._max_tokens = base, layout, prompt, max_tokens

    def replies(self, arms: Arms, here: slice) -> Replies:
        z, mean = (tensor[here].to(self._base.device) for tensor in (arms.z, arms.mean))
        written = self._generate(self._base.prefix(self._layout, z))
        ids, own = self._predict(z, written)
        divergence, texts = {}, {ALL: self._texts(written)}
        texts[DIRECT] = self._texts(self._generate(self._base.between(self._layout.direct, z[:, :0], ())))
        for arm, others in arms.others.items():
            other = others[here].to(z)
            texts[arm] = self._texts(self._generate(self._base.prefix(self._layout, other)))
            divergence[arm] = _divergence(own, self._predict(other, written)[1], ids)
        rows = range(z.shape[1])
        return Replies(
            texts, divergence,
            [self._same(z[:, :number], written) for number in rows],
            [self._same(torch.cat([z[:, :row], mean[:, row : row + 1], z[:, row + 1 :]], dim=1), written) for row in rows],
        )  # fmt: skip

    def _generate(self, prefix: Tensor) -> list[list[int]]:
        return self._base.generate(self._prompt, prefix, self._max_tokens)

    def _texts(self, written: Iterable[list[int]]) -> list[str]:
        return [str(self._base.tokenizer.decode(ids)) for ids in written]

    def _predict(self, z: Tensor, written: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The answers' tokens and what ends them, (B, Y), -1 behind; and the log-probabilities there after z, (B, Y, V)."""
        end = int(self._base.tokenizer.eos_token_id)
        ended = [[*ids, end][: self._max_tokens] for ids in written]
        ids = padded(ended, fill=-1).to(z.device)
        logits = self._base.answer_logits(self._prompt.copy(), self._base.prefix(self._layout, z), ids.clamp(min=0))
        return ids, logits.float().log_softmax(-1)

    def _same(self, z: Tensor, written: list[list[int]]) -> list[bool]:
        """Whether the greedy answer after z is the one that was written: no need to write it again."""
        ids, predicted = self._predict(z, written)
        return ((predicted.argmax(-1) == ids) | (ids < 0)).all(1).tolist()


def _divergence(own: Tensor, other: Tensor, ids: Tensor) -> list[float]:
    """KL(own ‖ other) in nats at the token of the answer where it is largest, of each question."""
    values = (own.exp() * (own - other)).sum(-1)  # (B, Y)
    return values.masked_fill(ids < 0, 0).amax(1).tolist()


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of the audit.

    necessity: which share of what latents add to direct answers is gone with their mean in their place. carriage: how often an
    answer is the donor's, where the donor of as many steps has another one.
    """
    arms = list(rows[0].right)
    accuracy = {arm: statistics.fmean(row.right[arm] for row in rows) for arm in arms}
    added = accuracy[ALL] - accuracy[DIRECT]
    surely = added > 2 * math.sqrt(0.5 / len(rows))  # two standard errors of a difference, at most
    necessity = (accuracy[ALL] - accuracy[MEAN]) / added if surely else 0.0
    follow = {arm: dict(zip(("rate", "chance"), following(rows, arm), strict=True)) for arm in rows[0].donors}
    carriage = follow[SWAPPED_ALIKE]["rate"]
    number = len(rows[0].prefixes)
    changed = [1 - statistics.fmean(row.without[at] for row in rows) for at in range(number)]
    used = [at + 1 for at, share in enumerate(changed) if share > _USED]
    return {
        "questions": len(rows),
        "latents": number,
        "verdict": verdict(necessity, carriage),
        "necessity": round(necessity, 4),
        "carriage": carriage,
        "used rows": used,
        "arms": {
            arm: {
                "right": round(accuracy[arm], 4),
                "same answer": round(statistics.fmean(row.final[arm] == row.final[ALL] for row in rows), 4),
                "nats": round(statistics.fmean(row.divergence[arm] for row in rows), 3) if arm in rows[0].divergence else None,
            }
            for arm in arms
        },
        "follow": follow,
        "changed without": [round(share, 4) for share in changed],
        "match": {
            level: {
                "first": round(statistics.fmean(first_match(row.prefixes) for row in of), 2),
                "stable": round(statistics.fmean(stable_match(row.prefixes) for row in of), 2),
            }
            for level in sorted({row.level for row in rows})
            for of in [[row for row in rows if row.level == level]]
        },
    }  # fmt: skip


def verdict(necessity: float, carriage: float) -> Verdict:
    if necessity < 0.2:
        return "ornament"
    return "carried" if necessity >= 0.8 and carriage >= 0.5 else "partly"


def following(rows: Sequence[Row], arm: str) -> tuple[float, float]:
    """How often the answer is the donor's where that is another one; and how often the mean latents' is, by chance."""
    pairs = [(row, rows[row.donors[arm]].final[ALL]) for row in rows]
    different = [(row, donor) for row, donor in pairs if donor is not None and donor != row.final[ALL]]
    if not different:
        return 0.0, 0.0
    rate, chance = (statistics.fmean(row.final[of] == donor for row, donor in different) for of in (arm, MEAN))
    return round(rate, 4), round(chance, 4)


def first_match(same: Sequence[bool]) -> int:
    """The fewest latents that give the answer of all; of a list from none to all but one."""
    return next((number for number, is_same in enumerate(same) if is_same), len(same))


def stable_match(same: Sequence[bool]) -> int:
    """The fewest from which on the answer is that of all."""
    return len(same) - next((tail for tail, is_same in enumerate(reversed(same)) if not is_same), len(same))


def markdown(figures: dict[str, Any]) -> str:
    number = figures["latents"]
    arms = (
        (arm, f"{value['right']:.3f}", f"{value['same answer']:.3f}", "" if value["nats"] is None else f"{value['nats']:.2f}")
        for arm, value in figures["arms"].items()
    )
    follow = ((arm, f"{values['rate']:.3f}", f"{values['chance']:.3f}") for arm, values in figures["follow"].items())
    match = ((level, values["first"], values["stable"]) for level, values in figures["match"].items())
    used = ", ".join(map(str, figures["used rows"])) or "none"
    return "\n\n".join(
        [
            f"Latents: {figures['verdict']}. Necessity {figures['necessity']:.3f}, carriage {figures['carriage']:.3f}; used "
            f"rows: {used} of {number} ({figures['questions']} questions).",
            table(["in place of the latents", "right", "same answer", "nats"], arms),
            table(["latents of", "answers as the donor", "by chance"], follow),
            table(["steps", f"first match, of {number} latents", "stable match"], match),
        ]
    )


def _plot(rows: Sequence[Row], output: Path) -> None:
    def points(values: Callable[[Row], Sequence[bool]], first: int) -> list[tuple[float, float, float]]:
        shares = [statistics.fmean(values(row)[at] for row in rows) for at in range(len(values(rows[0])))]
        return [(first + at, share, math.sqrt(share * (1 - share) / len(rows))) for at, share in enumerate(shares)]

    lines = {"the first n alone": points(lambda row: row.prefixes, 0), "all but the n-th": points(lambda row: row.without, 1)}
    plot_lines(lines, output, title="Answers that are those of all latents", x="n", y="share of questions")
