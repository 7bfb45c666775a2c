"""Why this answer? From its number back to the lines of the chain, or the latents, and to the words of the question.

    latentserve analyse why --output runs/why
    latentserve analyse why --question "Mia has 13 apples. In January, she sells 3 apples. How many apples does Mia have now?"

The kernel of SAGE-nano's explanations after the fact (2507.00092), on gradients in the place of attention: they are exact, and
go through the reasoning network, too. Lines are explained by their numbers, the last line and the answer by the last of them, a
latent by its part in the answer. Where a task knows what an answer rests on, as the demo does, they are put to the test.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt
from torch import Tensor

from reasoning_net.analysis.why_answers import DIRECT, EXPLICIT, LATENT, Answer, Explanation, readable
from reasoning_net.analysis.why_figures import markdown, summarise
from reasoning_net.attribution import PRODUCT, SIGNALS, Attribution, LatentAttribution, attribute, attribute_latent
from reasoning_net.bundle import bundle_of
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.options import Model, Questions, Seed
from reasoning_net.rollouts import Backend, Reply, Rollouts, Sampling, latent_replies, start
from reasoning_net.segments import Segment, Segments
from reasoning_net.stages.traces import LinesOf, append_batches
from reasoning_net.tasks import Example, Task, TaskSpec, with_answers

_PHRASE = 3  # words


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyConfig:
    output: Path | None = None
    """Directory of explanations.jsonl, why.json and why.md; a run found there goes on. Not needed for one question."""
    question: str | None = None
    """Explain the answers to this one, and nothing else."""
    model: Model = str(DEMO_MODEL)
    bundle: Path | None = None
    """Whose network. Default: the demo's, for the demo's base; else none, and no latents."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 300
    """Held-out questions."""
    num_latent_tokens: PositiveInt | None = None
    """As many as the bundle serves, by default."""
    batch_size: PositiveInt = 20
    """Questions between two saves; their gradients are kept at once."""
    max_tokens: PositiveInt = 24
    """Limit on an answer."""
    max_chain_tokens: PositiveInt = 1024
    """Limit on thinking and answer."""
    backend: Backend = "vllm"
    """What writes the answers to held-out questions."""
    seed: Seed = 0


def main(config: WhyConfig) -> str:
    """Writes `explanations.jsonl`, `why.json` and `why.md`, and returns the tables; or returns one question's explanation."""
    task = config.task.load()
    if config.question is not None:
        if not config.question.strip():
            raise StageError("The question is empty.")
        asked = Example([{"role": "user", "content": config.question}], "", "", 0, "")
        (explanation,) = _explainer(config, task, "transformers").explain([asked])
        return readable(explanation)
    if config.output is None:
        raise StageError("There is nowhere to write to: name a directory with --output, or one question with --question.")
    figures = summarise(_explain(config, config.output, task))
    text = markdown(figures)
    (config.output / "why.json").write_text(json.dumps(figures, indent=2) + "\n")
    (config.output / "why.md").write_text(text + "\n")
    return text


def _explain(config: WhyConfig, output: Path, task: Task) -> list[Explanation]:
    examples = with_answers(task, config.seed, "test", config.n)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "explanations.jsonl"

    def start() -> LinesOf[Example]:
        explainer = _explainer(config, task, config.backend)
        return lambda _, batch: (asdict(one) | {"text": readable(one)} for one in explainer.explain(batch))

    append_batches(path, examples, config.batch_size, start, "why")
    with path.open() as lines:
        return [Explanation.from_json(json.loads(line)) for line in itertools.islice(lines, config.n)]


def _explainer(config: WhyConfig, task: Task, backend: Backend) -> "Explainer":
    base, bundle = FrozenBase(config.model), bundle_of(config.model, config.bundle)
    layout = (bundle.manifest.layout if bundle else base.layout()).token_ids(base.tokenizer)
    net = bundle.reasoning_net() if bundle else None
    number = config.num_latent_tokens or (bundle.manifest.num_latent_tokens if bundle else None)
    number = number or (net.config.num_latent_tokens if net else 0)
    engine = start(backend, base, config.model, layout)
    sampling = Sampling(config.max_tokens), Sampling(config.max_chain_tokens)
    return Explainer(base, layout, net and net.requires_grad_(False), number, engine, task, *sampling)


@dataclass(frozen=True, slots=True)
class _Written:
    """An answer that was written in text, and what it consists of."""

    token_ids: list[int]
    """X, the layout, the chain and the answer."""
    text: str
    lines: list[Segment]
    targets: list[list[int]]
    """The positions of each line's numbers, and of the answer's."""


class Explainer:
    """Answers questions in every mode, and explains the answers."""

    def __init__(
        self, base: FrozenBase, layout: LayoutIds, net: ReasoningNet | None, num_latents: int, engine: Rollouts, task: Task,
        answering: Sampling, thinking: Sampling,
    ) -> None:  # fmt: skip
        self._base, self._layout, self._net, self._num_latents = base, layout, net, num_latents
        self._engine, self._task, self._answering, self._thinking = engine, task, answering, thinking
        self._segments = Segments(base.tokenizer)
        self._end = layout.end_token(base.tokenizer)

    def explain(self, examples: Sequence[Example]) -> list[Explanation]:
        prompts = [self._base.prompt_ids(example.messages) for example in examples]
        texts = [example.messages[-1]["content"] for example in examples]
        sentences = [self._segments.sentences(ids, text) for ids, text in zip(prompts, texts, strict=True)]
        answers = {
            DIRECT: self._in_text(prompts, sentences, self._layout.direct, thinks=False),
            EXPLICIT: self._in_text(prompts, sentences, self._layout.explicit, thinks=True),
        }
        if self._net:
            answers[LATENT] = self._after_latents(self._net, prompts, sentences)
        return [
            Explanation(
                texts[row], example.level, example.family, [sentence.text for sentence in sentences[row]],
                [len(sentence.positions) for sentence in sentences[row]],
                {mode: of[row] for mode, of in answers.items()},
                {mode: self._task.is_correct(of[row].text, example.answer) for mode, of in answers.items()},
                list(map(list, example.dependence.reads)) if example.dependence else None,
                list(example.dependence.matters) if example.dependence else None,
            )
            for row, example in enumerate(examples)
        ]  # fmt: skip

    def _in_text(
        self, prompts: Sequence[list[int]], sentences: Sequence[list[Segment]], opening: Sequence[int], *, thinks: bool
    ) -> list[Answer]:
        opened = [[*ids, *opening] for ids in prompts]
        replies = [reply for (reply,) in self._engine.from_tokens(opened, self._thinking if thinks else self._answering)]
        written = [self._written(*of, thinks) for of in zip(opened, replies, strict=True)]
        found = attribute(self._base, [one.token_ids for one in written], [one.targets for one in written])
        return [self._answer(*of) for of in zip(written, found, sentences, strict=True)]

    def _written(self, opened: list[int], reply: Reply, thinks: bool) -> _Written:
        """A chain that does not end has no answer: its last line stands for one in what is explained."""
        first, ended = len(opened), reply.finished and len(reply.token_ids) > 1
        ids = [*opened, *(reply.token_ids[:-1] if ended else reply.token_ids)]
        said, lines, text = range(first, len(ids)), list[Segment](), ""
        if thinks:
            closes = ids.index(self._end, first) if self._end in reply.token_ids else len(ids)
            before = list(self._layout.before_latents)
            start = first + len(before) if ids[first : first + len(before)] == before else first
            lines, said = self._segments.lines(ids[start:closes], start), range(closes + 1, len(ids))
        if lines and not said:
            said = lines.pop().positions
        else:
            text = str(self._base.tokenizer.decode(ids[said.start :])).strip()
        targets = [self._segments.numbers(ids, line.positions) for line in lines[:-1]]
        targets += [self._segments.last_number(ids, line.positions) for line in lines[-1:]]
        return _Written(ids, text, lines, [*targets, self._segments.last_number(ids, said)])

    def _answer(self, one: _Written, found: Attribution, sentences: Sequence[Segment]) -> Answer:
        pieces = [*(sentence.positions for sentence in sentences), *(line.positions for line in one.lines)]
        shares = {}
        for signal in SIGNALS:
            scores = found.over(pieces, signal)
            for row in range(len(one.lines)):
                scores[row, len(sentences) + row] = 0  # what a line rests on in itself
            shares[signal] = _shares(scores)
        words = self._phrases(one.token_ids, found, sentences)
        return Answer(one.text, [line.text for line in one.lines], shares, words)

    def _after_latents(self, net: ReasoningNet, prompts: list[list[int]], sentences: Sequence[list[Segment]]) -> list[Answer]:
        number, base = self._num_latents, self._base
        replies = [reply for (reply,) in latent_replies(net, base, self._engine, prompts, number, self._answering)]
        answers = [reply.token_ids[: -1 if reply.finished and len(reply.token_ids) > 1 else None] for reply in replies]
        targets = [self._segments.last_number(ids, range(len(ids))) for ids in answers]
        found = attribute_latent(base, net, self._layout, number, prompts, answers, targets)
        return [
            self._latent_answer(ids, reply, one, of)
            for ids, reply, one, of in zip(prompts, replies, found, sentences, strict=True)
        ]

    def _latent_answer(
        self, prompt: Sequence[int], reply: Reply, found: LatentAttribution, sentences: Sequence[Segment]
    ) -> Answer:
        pieces, rows = [sentence.positions for sentence in sentences], [range(row, row + 1) for row in range(self._num_latents)]
        by = {signal: (found.all_through.over(pieces, signal)[0], found.beside.over(pieces, signal)[0]) for signal in SIGNALS}
        return Answer(
            reply.text.strip(), [],
            {signal: _shares(found.through.over(pieces, signal)) for signal in SIGNALS},
            self._phrases(prompt, found.through, sentences),
            {signal: _shares(found.rows.over(rows, signal))[0] for signal in SIGNALS},
            {signal: _shares(through[None])[0] for signal, (through, _) in by.items()},
            {signal: _shares(beside[None])[0] for signal, (_, beside) in by.items()},
            {signal: round(float(beside.sum() / (through + beside).sum()), 4) for signal, (through, beside) in by.items()},
        )  # fmt: skip

    def _phrases(self, token_ids: Sequence[int], found: Attribution, sentences: Sequence[Segment]) -> list[list[str]]:
        """For each target the words of each sentence that it rests on most: a few that stand together."""
        words = [self._segments.words(token_ids, sentence) for sentence in sentences]
        scores = [found.over([word.positions for word in of], PRODUCT) for of in words]
        return [
            [_phrase(of, score[row]) for of, score in zip(words, scores, strict=True)] for row in range(len(found.products))
        ]


def _phrase(words: Sequence[Segment], scores: Tensor) -> str:
    if len(words) <= _PHRASE:
        return " ".join(word.text for word in words)
    first = int(scores.unfold(0, _PHRASE, 1).sum(1).argmax())
    return " ".join(word.text for word in words[first : first + _PHRASE])


def _shares(scores: Tensor) -> list[list[float]]:
    """Of each row, (K, pieces); nothing where a row rests on none of them."""
    return (scores / scores.sum(1, keepdim=True).clamp(min=1e-30)).round(decimals=4).tolist()
