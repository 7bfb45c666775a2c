"""How sure is an explicit answer? The tokens that it hangs on, followed back through attention, and how likely they were.

    latentserve analyse attention --model runs/base --traces runs/traces/traces.jsonl --output runs/attention

After UQAC (2503.19168): from the tokens of the final answer to the earlier tokens that they attend to most, and from these on,
until the question is reached; of what is found the tokens that are most like the answer; their probabilities, multiplied. It
needs attention weights, which no serving kernel gives, so it is a study: is it better than what a server could have? We
differ: weights are the mean of heads, of all layers or of the last one; the paper's marginal over other tokens is not here.

Shapes: T tokens of X, chain and reply; H heads, d hidden size.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.options import LayoutFile, Model, Questions, Share
from reasoning_net.stages.traces import Trace, read_traces
from reasoning_net.tables import table
from reasoning_net.tasks import Task, TaskSpec
from router.figures import auroc, known

CHAIN, CHAIN_LEAST = "attention chain (UQAC)", "its least certain token"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    traces: Path
    """traces.jsonl of `train traces`: explicit answers, right and wrong."""
    output: Path
    """Directory of signals.jsonl, attention.json and attention.md; a run found there goes on."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 1000
    """Answers."""
    width: PositiveInt = 3
    """Tokens that each token is followed back to, at most."""
    threshold: Share = 0.1
    """Attention from which on a token is followed."""
    layers: Literal["all", "last"] = "all"
    """Whose attention: the mean of all, or of the last one's heads."""
    kept: PositiveInt = 16
    """Tokens of a chain of attention that count: those most like the answer."""
    layout: LayoutFile = None


@dataclass(frozen=True, slots=True)
class Signals:
    """Of one explicit answer; higher where it should be right."""

    right: bool
    level: int
    values: dict[str, float]
    followed: int
    """Tokens of the chain of attention."""


def main(config: AttentionConfig) -> str:
    """Writes `signals.jsonl`, `attention.json` and `attention.md`; returns the table."""
    traces = [trace for trace in read_traces(config.traces) if trace.reply][: config.n]
    if not traces:
        raise StageError(f"{config.traces} has no finished chain.")
    task, base = config.task.load(), FrozenBase(config.model)
    base.model.set_attn_implementation("eager")
    reader = Reader(base, base.layout(config.layout).token_ids(base.tokenizer), task, config)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "signals.jsonl"
    *lines, _ = path.read_text().split("\n") if path.exists() else [""]
    path.write_text("".join(f"{line}\n" for line in lines))
    with path.open("a") as file:
        for trace in tqdm(traces[len(lines) :], initial=len(lines), total=len(traces), desc="attention", unit="answer"):
            file.write(json.dumps(asdict(reader.signals(trace))) + "\n")
            file.flush()
    figures = summarise([Signals(**json.loads(line)) for line in path.read_text().splitlines()])
    text = markdown(figures)
    (config.output / "attention.json").write_text(json.dumps(figures, indent=2) + "\n")
    (config.output / "attention.md").write_text(text + "\n")
    return text


class Reader:
    """A base that gives its attention, and what it says of answers."""

    def __init__(self, base: FrozenBase, layout: LayoutIds, task: Task, config: AttentionConfig) -> None:
        self._base, self._layout, self._task, self._config = base, layout, task, config

    @torch.no_grad()
    def signals(self, trace: Trace) -> Signals:
        prompt = self._base.prompt_ids(trace.messages)
        thought = [*self._layout.before_latents, *self._encode(trace.reasoning), *self._layout.after_latents]
        reply = self._encode(trace.reply)
        ids = torch.tensor([[*prompt, *thought, *reply]], device=self._base.device)
        output = self._base.model(ids, output_attentions=True, output_hidden_states=True)
        logprobs = output.logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        likely = torch.cat([logprobs.new_zeros(1), logprobs])  # (T,): of each token, given those before it
        layers = output.attentions if self._config.layers == "all" else output.attentions[-1:]
        weights = torch.cat(list(layers)).mean((0, 1))  # (T, T) of layers (1, H, T, T)
        start = len(prompt) + len(thought)
        said = [start + at for at in self._relevant(reply)]
        chain = followed(weights, said, len(prompt), self._config.width, self._config.threshold)
        states = output.hidden_states[-1][0]  # (T, d)
        alike = cosine_similarity(states[chain], states[said].mean(0, keepdim=True), dim=-1) if chain else torch.zeros(0)
        kept = [chain[at] for at in alike.topk(min(self._config.kept, len(chain))).indices.tolist()]
        counted, of_reply, of_all = likely[[*kept, *said]], likely[start:], likely[len(prompt) :]
        values = {
            CHAIN: float(counted.sum()),
            CHAIN_LEAST: float(counted.min()),
            "least certain token of the reply": float(of_reply.min()),
            "mean log-probability of the reply": float(of_reply.mean()),
            "least certain token of chain and reply": float(of_all.min()),
            "mean log-probability of chain and reply": float(of_all.mean()),
            "length of the chain": -float(len(thought)),
            "number of steps": -float(trace.level),
        }
        return Signals(trace.correct, trace.level, values, len(chain))

    def _encode(self, text: str) -> list[int]:
        return list(self._base.tokenizer.encode(text, add_special_tokens=False))

    def _relevant(self, reply: Sequence[int]) -> list[int]:
        """Which tokens of the reply its final answer hangs on; all, where it is none of them."""

        def answer(ids: Iterable[int]) -> str | None:
            return self._task.final_answer(str(self._base.tokenizer.decode(list(ids))))

        whole = answer(reply)
        found = [at for at in range(len(reply)) if answer([*reply[:at], *reply[at + 1 :]]) != whole]
        return found or list(range(len(reply)))


def followed(weights: Tensor, start: Sequence[int], end_of_question: int, width: int, threshold: float) -> list[int]:
    """Tokens behind the question that those at `start` hang on, over others: positions in order.

    A token was written by the position before it: that row of the weights (T, T) says what it attended to. The first token of
    all is left out: what has nothing to look at looks there.
    """
    found, frontier = set(start), list(start)
    while frontier:
        row = weights[frontier.pop() - 1].clone()
        row[0] = 0
        largest = row.topk(min(width, len(row)))
        for weight, at in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
            if weight >= threshold and at >= end_of_question and at not in found:
                found.add(at)
                frontier.append(at)
    return sorted(found - set(start))


def summarise(signals: Sequence[Signals]) -> dict[str, Any]:
    """AUROC of each signal for right answers, of all and at least within a number of steps."""
    right = torch.tensor([float(one.right) for one in signals])
    levels = torch.tensor([one.level for one in signals])

    def areas(name: str) -> dict[str, float | None]:
        scores = torch.tensor([one.values[name] for one in signals])
        within = [auroc(scores[levels == level], right[levels == level]) for level in levels.unique()]
        least = min((area for area in within if not math.isnan(area)), default=math.nan)
        return {"AUROC": known(auroc(scores, right)), "least": known(least)}

    return {
        "answers": len(signals),
        "right": round(statistics.fmean(one.right for one in signals), 4),
        "followed": round(statistics.fmean(one.followed for one in signals), 1),
        "signals": {name: areas(name) for name in signals[0].values},
    }


def markdown(figures: Mapping[str, Any]) -> str:
    def cell(area: float | None) -> str:
        return "" if area is None else f"{area:.3f}"

    rows = ((name, cell(of["AUROC"]), cell(of["least"])) for name, of in figures["signals"].items())
    said = (
        f"{figures['answers']} explicit answers, {figures['right']:.3f} of them right; a chain of attention has "
        f"{figures['followed']} tokens on average."
    )
    return f"{said}\n\n{table(['signal of a right answer', 'AUROC', 'least within a number of steps'], rows)}"
