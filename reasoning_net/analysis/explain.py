"""Read a reason for an answer off its latents, and put it to the test.

    latentserve analyse explain --bundle runs/bundle --output runs/explain

After "Are latent reasoning models easily interpretable?" (2604.04902). Two lenses say which whole number each row of latents is
nearest to; a checker looks for steps of arithmetic that lead from the question's numbers, over these, to the answer; and a step
counts as verified when it follows a change of the question: the number in its row becomes the recomputed one, for two of three
changes. A third way lets the model write a chain after the latents. It may have worked that out from the question alone, so the
same stands beside it with the mean of all questions' latents.

Shapes: B questions, N latent tokens, d hidden size, V vocabulary, K whole numbers that are one token.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from tqdm import tqdm

from reasoning_net.analysis.latents import as_loud, load_network
from reasoning_net.checker import Arithmetic, Change, Checker, Reading, Trace, described, equations, needed_changes, verified
from reasoning_net.demo import DEMO_BUNDLE, DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import END_OF_THINKING, LayoutIds
from reasoning_net.lens import lens_logits, whole_numbers
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Model, Questions, Seed
from reasoning_net.rollouts import Rollouts, Sampling, VllmRollouts, think
from reasoning_net.stages.fit import fit_confidence
from reasoning_net.tables import table
from reasoning_net.tasks import Example, TaskSpec
from router.figures import auroc, known

INPUT, OUTPUT, WRITTEN, WRITTEN_AFTER_MEAN = "input lens", "output lens", "chain after the latents", "chain after mean latents"
LENSES = (INPUT, OUTPUT)
LEAST = "least certain token"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainConfig:
    output: Path
    """Directory of explanations.jsonl and explain.json."""
    bundle: Path = DEMO_BUNDLE
    """Whose network."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 500
    """Held-out questions whose answers are numbers."""
    num_latent_tokens: PositiveInt | None = None
    """As many as the bundle serves, by default."""
    batch_size: PositiveInt = 64
    """Questions that are read at once."""
    max_tokens: PositiveInt = 24
    """Limit on an answer."""
    max_chain_tokens: PositiveInt = 300
    """Limit on a chain that is written after latents."""
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """One question, its latent answer, and the reasons that were found for it."""

    question: str
    level: int
    right: bool
    reply: str
    confidence: float | None
    """Probability of the reply's least certain token."""
    answers: dict[str, float]
    """By lens: how likely a row holds the answer."""
    decodability: float
    """As a server tells it: of the input lens, from the likeliest number of each row alone."""
    traces: dict[str, list[dict[str, Any]]]
    """By lens: the steps that were found; empty where none lead to the answer."""
    verified: dict[str, bool]
    """By lens: every step follows changes of the question."""
    entailed: dict[str, bool]
    """By written chain: its last right equation comes to the answer."""


def main(config: ExplainConfig) -> str:
    """Writes `explanations.jsonl` and `explain.json`; returns the tables."""
    bundle, net, number = load_network(config.bundle, config.model, config.num_latent_tokens)
    base = FrozenBase(config.model)
    layout = bundle.manifest.layout.token_ids(base.tokenizer)
    explainer = Explainer(base, net, layout, number, config.batch_size)
    found = list(explain(config, explainer, VllmRollouts(config.model, layout), Arithmetic()))
    config.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(explanation), ensure_ascii=False) + "\n" for explanation in found)
    (config.output / "explanations.jsonl").write_text(lines)
    figures = summarise(found)
    (config.output / "explain.json").write_text(json.dumps(figures, indent=2) + "\n")
    return markdown(figures)


class Explainer:
    """Reads latents through a base's embeddings, or through what it predicts where they stand."""

    def __init__(self, base: FrozenBase, net: ReasoningNet, layout: LayoutIds, num_latents: int, batch_size: int) -> None:
        self.base, self._net, self._layout = base, net, layout
        self._num_latents, self._batch_size = num_latents, batch_size
        if not (numbers := whole_numbers(base.tokenizer)):
            raise StageError("No token of this base is a whole number: there is nothing for the lenses to find.")
        self._tokens = torch.tensor(list(numbers))  # (K,)
        self._numbers = torch.tensor(list(numbers.values()))

    @torch.no_grad()
    def read(self, prompts: Sequence[list[int]], lenses: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """z (B, N, d), and by lens the probabilities of the whole numbers in each row, (B, N, K)."""
        latents, probabilities = list[Tensor](), {lens: list[Tensor]() for lens in lenses}
        for at in range(0, len(prompts), self._batch_size):
            prompt = self.base.read(prompts[at : at + self._batch_size])
            latents.append(z := think(self._net, prompt, self._num_latents))
            for lens in lenses:
                probabilities[lens].append(self._lens(z, prompt.copy(), lens))
        return torch.cat(latents), {lens: torch.cat(parts) for lens, parts in probabilities.items()}

    def numbers(self, probabilities: Tensor) -> Tensor:
        """The likeliest whole number of each row, (…)."""
        return self._numbers[probabilities.argmax(-1)]

    def reading(self, probabilities: Tensor) -> Reading:
        """Of one question, (N, K)."""
        return Reading(self.numbers(probabilities).tolist(), probabilities.amax(-1).tolist())

    def holds(self, probabilities: Tensor, answer: int | None) -> float:
        """The largest probability of the answer in any row of one question, (N, K)."""
        here = probabilities[:, self._numbers == answer] if answer is not None else probabilities[:, :0]
        return float(here.sum(-1).max()) if here.numel() else 0.0

    def _lens(self, z: Tensor, prompt: Prompt, lens: str) -> Tensor:
        """Probabilities of whole numbers in each row, (B, N, K): by similarity, or as predicted among all tokens."""
        if lens == INPUT:
            return lens_logits(z, self.base.embed.weight[self._tokens]).softmax(-1)
        states = self.base.extend(prompt, self.base.between(self._layout.before_latents, z, ()))
        return self.base.logits(states[:, -z.shape[1] :]).float().softmax(-1)[..., self._tokens]


def explain(config: ExplainConfig, explainer: Explainer, engine: Rollouts, checker: Checker) -> Iterator[Explanation]:
    """Questions whose latent answer is a number, with the reasons that are found for it."""
    task = config.task.load()
    examples = list(islice((e for e in task.examples(config.seed, "test") if e.answer.isdigit()), config.n))
    if not examples:
        raise StageError("None of the held-out questions has a whole number as its answer.")
    prompts = [explainer.base.prompt_ids(example.messages) for example in examples]
    z, probabilities = explainer.read(prompts, LENSES)
    mean = as_loud(z.mean(0).expand_as(z), z)
    replies = [reply for (reply,) in engine.from_latents(prompts, z, Sampling(config.max_tokens, confidence=True))]
    finals = [task.final_answer(reply.text) for reply in replies]
    answers = [int(final) if final and final.isdigit() else None for final in finals]
    sampling = Sampling(config.max_chain_tokens)
    chains = {
        name: [reply.text for (reply,) in engine.from_latents(prompts, latents, sampling, think_on=True)]
        for name, latents in ((WRITTEN, z), (WRITTEN_AFTER_MEAN, mean))
    }
    for index, example in enumerate(tqdm(examples, desc="explain", unit="question")):
        answer, text = answers[index], question_of(example)
        readings = {lens: explainer.reading(probabilities[lens][index]) for lens in LENSES}
        traces: dict[str, Trace] = {}
        follows: dict[str, list[bool]] = {}
        for lens in LENSES:
            traces[lens] = checker.trace(readings[lens].values, text, answer) if answer is not None else ()
            follows[lens] = verify(
                explainer, example, traces[lens], needed_changes(traces[lens], checker.changes(traces[lens], text)), lens
            )
        yield Explanation(
            text, example.level, task.is_correct(replies[index].text, example.answer), replies[index].text,
            replies[index].confidence, {lens: explainer.holds(probabilities[lens][index], answer) for lens in LENSES},
            readings[INPUT].decodability(answer) if answer is not None else 0.0,
            {lens: steps_of(described(readings[lens], traces[lens], follows[lens])) for lens in LENSES},
            {lens: bool(traces[lens]) and all(follows[lens]) for lens in LENSES},
            {name: _entails(texts[index], answer) for name, texts in chains.items()},
        )  # fmt: skip


def question_of(example: Example) -> str:
    """The last message: where numbers are changed."""
    return example.messages[-1]["content"]


def verify(explainer: Explainer, example: Example, trace: Trace, changes: Sequence[Change], lens: str) -> list[bool]:
    """Whether each step follows the changes of the question that change it."""
    if not changes:
        return [False] * len(trace)
    last = example.messages[-1]
    asked = [[*example.messages[:-1], last | {"content": change.question}] for change in changes]
    _, probabilities = explainer.read([explainer.base.prompt_ids(messages) for messages in asked], (lens,))
    return verified(trace, changes, explainer.numbers(probabilities[lens]).tolist())


def steps_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are steps of the trace."""
    return [row for row in rows if row["operation"] is not None]


def _entails(text: str, answer: int | None) -> bool:
    found = equations(text.partition(END_OF_THINKING)[0])
    return answer is not None and bool(found) and found[-1][1] == answer


def summarise(found: Sequence[Explanation]) -> dict[str, Any]:
    """Shares of right, and of wrong, answers for which a reason was found and verified; what that says about the answer."""
    groups = {"right": [e for e in found if e.right], "wrong": [e for e in found if not e.right]}

    def shares(holds: Callable[[Explanation], bool]) -> dict[str, float | None]:
        return {name: round(statistics.fmean(map(holds, of)), 4) if of else None for name, of in groups.items()}

    ways = {f"{lens}: a trace": shares(lambda e, lens=lens: bool(e.traces[lens])) for lens in LENSES}  # type: ignore[misc]
    ways |= {f"{lens}: verified": shares(lambda e, lens=lens: e.verified[lens]) for lens in LENSES}  # type: ignore[misc]
    ways |= {name: shares(lambda e, name=name: e.entailed[name]) for name in found[0].entailed}  # type: ignore[misc]
    right = torch.tensor([float(e.right) for e in found])
    levels = torch.tensor([e.level for e in found])
    signals = {f"the answer by the {lens}": torch.tensor([e.answers[lens] for e in found]) for lens in LENSES}
    signals["decodability"] = torch.tensor([e.decodability for e in found])
    signals[LEAST] = torch.tensor([e.confidence or 0.0 for e in found])  # an empty answer has none
    signals[f"{LEAST} and decodability"] = joined(signals["decodability"], signals[LEAST], right)
    return {
        "questions": len(found),
        "right": len(groups["right"]),
        "found": ways,
        "auroc": {name: known(auroc(values, right)) for name, values in signals.items()},
        "auroc within equal steps": {name: known(auroc_within(values, right, levels)) for name, values in signals.items()},
    }


def joined(prior: Tensor, confidence: Tensor, right: Tensor) -> Tensor:
    """P(right) by the regression that checks auto's answers, (n,), on two signals; each half by what the other half says."""
    scores = torch.empty_like(prior)
    for half in (0, 1):
        fitted = fit_confidence(prior[1 - half :: 2], confidence[1 - half :: 2], right[1 - half :: 2])
        pairs = zip(prior[half::2].tolist(), confidence[half::2].tolist(), strict=True)
        scores[half::2] = torch.tensor([fitted.posterior(*pair) for pair in pairs])
    return scores


def auroc_within(scores: Tensor, right: Tensor, levels: Tensor) -> float:
    """The chance that a right answer is scored above a wrong one to a question of as many steps; all (n,)."""
    areas, weights = list[float](), list[float]()
    for level in levels.unique():
        here = right[levels == level]
        if pairs := float(here.sum() * (1 - here).sum()):
            areas.append(auroc(scores[levels == level], here))
            weights.append(pairs)
    return statistics.fmean(areas, weights) if areas else math.nan


def markdown(figures: dict[str, Any]) -> str:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    ways = ((way, cell(values["right"]), cell(values["wrong"])) for way, values in figures["found"].items())
    within = figures["auroc within equal steps"]
    signals = ((name, cell(value), cell(within[name])) for name, value in figures["auroc"].items())
    wrong = figures["questions"] - figures["right"]
    return "\n\n".join(
        [
            table(["a reason by", f"of {figures['right']} right answers", f"of {wrong} wrong ones"], ways),
            table(["signal", "AUROC of a right answer", "within equal steps"], signals),
        ]
    )
