"""Can tokens of a question be left out? Drop those that say least, by three measures, and answer from what is left.

    latentserve analyse prompt --output runs/prompt

FrugalPrompt (2510.16439) keeps a share of a prompt's tokens, in their order: little is lost in sentiment, common sense and
summaries, and much in mathematics, where tokens chosen by chance are sometimes as good. Its scores come from a classifier
(GlobEnc, DecompX); ours need no other model: what surprised the base, and gradient × input of its direct answer. Only the last
message of X is cut; the chat template stays whole.
"""

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from reasoning_net.attribution import PRODUCT, attribute
from reasoning_net.bundle import bundle_of
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Model, Questions, Seed, Share, commas
from reasoning_net.padding import left_padded
from reasoning_net.plots import plot_lines
from reasoning_net.rollouts import Backend, Rollouts, Sampling, latent_replies, start
from reasoning_net.segments import Segments
from reasoning_net.stages.traces import LinesOf, append_batches
from reasoning_net.tables import table
from reasoning_net.tasks import Example, Task, TaskSpec, with_answers

DIRECT, LATENT, EXPLICIT = "direct", "latent", "explicit"
CHANCE, SURPRISE = "chance", "surprise"
SCORES = (CHANCE, SURPRISE, PRODUCT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    output: Path
    """Directory of answers.jsonl, prompt.json, prompt.md and prompt.png; a run found there goes on."""
    model: Model = str(DEMO_MODEL)
    bundle: Path | None = None
    """Whose network. Default: the demo's, for the demo's base; else none, and no latents."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 200
    """Held-out questions."""
    keep: Annotated[tuple[Share, ...], commas(float)] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of the tokens that are kept."""
    batch_size: PositiveInt = 20
    """Questions between two saves; their gradients are kept at once."""
    max_tokens: PositiveInt = 24
    """Limit on an answer."""
    max_chain_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""
    backend: Backend = "vllm"
    """What writes the answers."""
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class CutAnswers:
    """Answers to one question from some of its tokens."""

    score: str
    """What chose them."""
    keep: float
    numbers: float
    """Share of the question's tokens with a digit that stayed."""
    right: dict[str, bool]
    """By mode."""


def main(config: PromptConfig) -> str:
    """Writes `answers.jsonl`, `prompt.json`, `prompt.md` and `prompt.png`; returns the table."""
    task = config.task.load()
    examples = with_answers(task, config.seed, "test", config.n)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "answers.jsonl"

    def start_cutting() -> LinesOf[Example]:
        cutter = _cutter(config, task)
        return lambda at, batch: ({"answers": list(map(asdict, of))} for of in cutter.answers(at, batch))

    append_batches(path, examples, config.batch_size, start_cutting, "prompt")
    with path.open() as lines:
        found = [[CutAnswers(**one) for one in json.loads(line)["answers"]] for line in itertools.islice(lines, config.n)]
    figures = summarise(found)
    text = markdown(figures)
    (config.output / "prompt.json").write_text(json.dumps(figures, indent=2) + "\n")
    (config.output / "prompt.md").write_text(text + "\n")
    curves = {
        score: [(row["keep"], row["right"][EXPLICIT], 0.0) for row in figures["rows"] if row["score"] == score]
        for score in SCORES
    }
    plot_lines(
        curves, config.output / "prompt.png", title="Explicit answers to what is left of a question", x="share kept", y="right"
    )
    return text


def _cutter(config: PromptConfig, task: Task) -> "Cutter":
    base, bundle = FrozenBase(config.model), bundle_of(config.model, config.bundle)
    layout = (bundle.manifest.layout if bundle else base.layout()).token_ids(base.tokenizer)
    net = bundle.reasoning_net() if bundle else None
    number = (bundle.manifest.num_latent_tokens if bundle else None) or (net.config.num_latent_tokens if net else 0)
    engine = start(config.backend, base, config.model, layout)
    return Cutter(base, layout, net and net.requires_grad_(False), number, engine, task, config)


class Cutter:
    """Leaves tokens of questions out, and asks."""

    def __init__(
        self, base: FrozenBase, layout: LayoutIds, net: ReasoningNet | None, num_latents: int, engine: Rollouts, task: Task,
        config: PromptConfig,
    ) -> None:  # fmt: skip
        self._base, self._layout, self._net, self._number = base, layout, net, num_latents
        self._engine, self._task, self._config = engine, task, config
        self._segments = Segments(base.tokenizer)

    def answers(self, first: int, batch: Sequence[Example]) -> Iterator[list[CutAnswers]]:
        """`first`: the number of the batch's first question, of which chance is made."""
        prompts = [self._base.prompt_ids(example.messages) for example in batch]
        asked = [self._asked(ids, example) for ids, example in zip(prompts, batch, strict=True)]
        scored = self._scores(prompts, first)
        ways = [(CHANCE, 1.0), *itertools.product(SCORES, self._config.keep)]
        cut = [
            [without(ids, span, scores[score], keep) for ids, span, scores in zip(prompts, asked, scored, strict=True)]
            for score, keep in ways
        ]
        right = self._right([ids for of in cut for ids in of], [e.answer for e in batch] * len(ways))
        for row, ids in enumerate(prompts):
            yield [
                CutAnswers(
                    score, keep, self._digits(cut[way][row]) / max(1, self._digits(ids)),
                    {mode: of[way * len(batch) + row] for mode, of in right.items()},
                )
                for way, (score, keep) in enumerate(ways)
            ]  # fmt: skip

    def _asked(self, token_ids: Sequence[int], example: Example) -> range:
        """Where the last message stands in X."""
        sentences = self._segments.sentences(token_ids, example.messages[-1]["content"])
        return range(sentences[0].positions.start, sentences[-1].positions.stop)

    def _scores(self, prompts: Sequence[list[int]], first: int) -> list[dict[str, Tensor]]:
        """By measure, of each token of X, (T,)."""
        direct = [[*ids, *self._layout.direct] for ids in prompts]
        said = [reply.token_ids for (reply, *_) in self._engine.from_tokens(direct, Sampling(self._config.max_tokens))]
        whole = [[*ids, *reply] for ids, reply in zip(direct, said, strict=True)]
        numbers = [self._segments.numbers(ids, range(len(before), len(ids))) for ids, before in zip(whole, direct, strict=True)]
        products = attribute(self._base, whole, [[at] for at in numbers])
        return [
            {
                CHANCE: torch.rand(
                    len(ids), generator=torch.Generator().manual_seed(self._config.seed * 100_003 + first + row)
                ),
                SURPRISE: surprise,
                PRODUCT: of.products[0, : len(ids)],
            }
            for row, (ids, surprise, of) in enumerate(zip(prompts, self._surprises(prompts), products, strict=True))
        ]

    @torch.no_grad()
    def _surprises(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """−log P of each token given those before it, (T,)."""
        base = self._base
        ids, mask = (tensor.to(base.device) for tensor in left_padded(prompts))
        logits = base.logits(base.read_ids(ids, mask).hidden_states[:, :-1]).float()
        likely = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        whole = torch.nn.functional.pad(-likely, (1, 0)).cpu()
        return [row[len(row) - len(prompt) :] for row, prompt in zip(whole, prompts, strict=True)]

    def _right(self, prompts: list[list[int]], answers: Sequence[str]) -> dict[str, list[bool]]:
        short, long = Sampling(self._config.max_tokens), Sampling(self._config.max_chain_tokens)
        direct = self._engine.from_tokens([[*ids, *self._layout.direct] for ids in prompts], short)
        explicit = self._engine.from_tokens([[*ids, *self._layout.explicit] for ids in prompts], long)
        texts = {
            DIRECT: [reply.text for (reply, *_) in direct],
            EXPLICIT: [self._layout.split(reply.text)[1] or "" for (reply, *_) in explicit],
        }
        if self._net is not None:
            latent = latent_replies(self._net, self._base, self._engine, prompts, self._number, short)
            texts[LATENT] = [reply.text for (reply, *_) in latent]
        graded = self._task.is_correct
        return {mode: [graded(text, answer) for text, answer in zip(of, answers, strict=True)] for mode, of in texts.items()}

    def _digits(self, token_ids: Sequence[int]) -> int:
        return sum(any(map(str.isdigit, str(self._base.tokenizer.decode([token])))) for token in token_ids)


def without(token_ids: Sequence[int], asked: range, scores: Tensor, keep: float) -> list[int]:
    """X without the lowest-scored tokens of what is asked, in order; scores: (T,)."""
    number = max(1, round(keep * len(asked)))
    best = scores[asked.start : asked.stop].topk(number).indices.tolist()
    kept = {asked[at] for at in best}
    return [token for at, token in enumerate(token_ids) if at not in asked or at in kept]


def summarise(found: Sequence[Sequence[CutAnswers]]) -> dict[str, Any]:
    ways = [(one.score, one.keep) for one in found[0]]
    rows = []
    for at, (score, keep) in enumerate(ways):
        of = [answers[at] for answers in found]
        right = {mode: round(statistics.fmean(one.right[mode] for one in of), 4) for mode in of[0].right}
        rows.append(
            {"score": score, "keep": keep, "numbers": round(statistics.fmean(one.numbers for one in of), 4), "right": right}
        )
    return {"questions": len(found), "rows": rows}


def markdown(figures: Mapping[str, Any]) -> str:
    modes = [mode for mode in (DIRECT, LATENT, EXPLICIT) if mode in figures["rows"][0]["right"]]
    rows = (
        (
            "all" if row["keep"] == 1 else f"{row['keep']:.0%}", "" if row["keep"] == 1 else row["score"],
            *(f"{row['right'][mode]:.3f}" for mode in modes), f"{row['numbers']:.2f}",
        )
        for row in sorted(figures["rows"], key=lambda row: (-row["keep"], SCORES.index(row["score"])))
    )  # fmt: skip
    return f"{figures['questions']} questions.\n\n{table(['kept', 'chosen by', *modes, 'numbers kept'], rows)}"
