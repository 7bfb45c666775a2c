"""How much of its KV cache does a chain need? Drop cached tokens while it is written, by several policies.

    latentserve analyse kv --output runs/kv

After LazyEviction (2506.15969): tokens of a chain are attended to again after quiet spells, so who is quiet is not done with.
Every W steps what exceeds a budget is dropped, but for the last W tokens. Dropped here means masked, which is the same to what
follows; rotary positions stay those of the whole text. We differ: one set of tokens for all layers, from the mean attention of
layers and heads. It is a study: vLLM's kernels give no attention weights, and its cache frees blocks, not tokens.

Shapes: B questions, T cached tokens, V vocabulary.
"""

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from reasoning_net.analysis.eviction import POLICIES, Policy, Seen, kept
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.options import LayoutFile, Model, Questions, Seed, Share, commas
from reasoning_net.padding import left_padded
from reasoning_net.plots import plot_lines
from reasoning_net.stages.traces import LinesOf, append_batches
from reasoning_net.tables import table
from reasoning_net.tasks import Example, Task, TaskSpec, with_answers

WHOLE = "whole cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class KvConfig:
    output: Path
    """Directory of answers.jsonl, kv.json, kv.md and kv.png; a run found there goes on."""
    model: Model = str(DEMO_MODEL)
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 100
    """Held-out questions."""
    budget: Annotated[tuple[Share, ...], commas(float)] = (0.3, 0.5, 0.7)
    """Cached tokens, as shares of all tokens of the question and of its answer with the whole cache."""
    window: PositiveInt = 16
    """Last tokens that are always kept, and steps between two evictions (W)."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Attention, mean of layers and heads, from which on a token counts as attended to (α)."""
    max_tokens: PositiveInt = 512
    """Limit on thinking and answer."""
    batch_size: PositiveInt = 20
    """Questions between two saves."""
    layout: LayoutFile = None
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Written:
    """One chain and its answer."""

    policy: str
    budget: float
    right: bool
    tokens: int
    cached: float
    """Mean number of cached tokens, of all its steps."""
    same: bool
    """Token for token what the whole cache gives."""


@dataclass(frozen=True, slots=True)
class Spells:
    """How tokens are attended to again, with the whole cache."""

    recurring: float
    """Share of tokens that were quiet for at least one step, and then attended to again."""
    longest_gap_p80: float
    """Of all tokens' longest quiet spells, in steps, the 80th percentile."""


def main(config: KvConfig) -> str:
    """Writes `answers.jsonl`, `kv.json`, `kv.md` and `kv.png`; returns the table."""
    task = config.task.load()
    examples = with_answers(task, config.seed, "test", config.n)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "answers.jsonl"

    def start() -> LinesOf[Example]:
        base = FrozenBase(config.model)
        base.model.set_attn_implementation("eager")
        writer = Writer(base, base.layout(config.layout).token_ids(base.tokenizer), task, config)
        return lambda at, batch: writer.lines(at, batch)

    append_batches(path, examples, config.batch_size, start, "kv")
    with path.open() as file:
        lines = [json.loads(line) for line in itertools.islice(file, config.n)]
    figures = summarise(
        [Spells(**line["spells"]) for line in lines], [[Written(**one) for one in line["written"]] for line in lines]
    )
    text = markdown(figures)
    (config.output / "kv.json").write_text(json.dumps(figures, indent=2) + "\n")
    (config.output / "kv.md").write_text(text + "\n")
    curves = {
        policy: [(row["budget"], row["right"], 0.0) for row in figures["rows"] if row["policy"] == policy]
        for policy in POLICIES
    }
    plot_lines(curves, config.output / "kv.png", title="Chains from part of their cache", x="share of the cache", y="right")
    return text


@dataclass(frozen=True, slots=True)
class Decoded:
    tokens: list[list[int]]
    cached: list[float]
    seen: Seen


class Writer:
    """A base that writes from part of its cache."""

    def __init__(self, base: FrozenBase, layout: LayoutIds, task: Task, config: KvConfig) -> None:
        self._base, self._layout, self._task, self._config = base, layout, task, config
        end = base.model.generation_config.eos_token_id
        self._ends = torch.tensor(end if isinstance(end, list) else [end], device=base.device)

    def lines(self, first: int, batch: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """`first`: the number of the batch's first question, of which chance is made."""
        config, base = self._config, self._base
        prompts = [[*base.prompt_ids(example.messages), *self._layout.explicit] for example in batch]
        whole = self.decoded(prompts)
        sizes = [len(ids) + len(tokens) for ids, tokens in zip(prompts, whole.tokens, strict=True)]
        budgets = torch.tensor([[max(config.window + 1, round(share * size)) for size in sizes] for share in config.budget])
        found = [[self._written(WHOLE, 1.0, whole, row, row, whole, batch)] for row in range(len(batch))]
        for name, policy in tqdm(POLICIES.items(), desc="policies", leave=False):
            cut = self.decoded(prompts * len(config.budget), policy, budgets.view(-1).to(base.device), first)
            for at, share in enumerate(config.budget):
                for row in range(len(batch)):
                    found[row].append(self._written(name, share, cut, at * len(batch) + row, row, whole, batch))
        for row, written in enumerate(found):
            yield {"spells": asdict(_spells(whole.seen, row)), "written": [asdict(one) for one in written]}

    def _written(
        self, policy: str, budget: float, of: Decoded, at: int, row: int, whole: Decoded, batch: Sequence[Example]
    ) -> Written:
        _, said = self._layout.split(str(self._base.tokenizer.decode(of.tokens[at])))
        right = self._task.is_correct(said or "", batch[row].answer)
        return Written(policy, budget, right, len(of.tokens[at]), of.cached[at], of.tokens[at] == whole.tokens[row])

    @torch.no_grad()
    def decoded(
        self, prompts: Sequence[Sequence[int]], policy: Policy | None = None, budgets: Tensor | None = None, seed: int = 0
    ) -> Decoded:
        """Greedy, without the token that ends a reply; budgets: (B,)."""
        config, base = self._config, self._base
        generator = torch.Generator().manual_seed(config.seed * 100_003 + seed)
        ids, mask = (tensor.to(base.device) for tensor in left_padded(prompts))
        seen, cache, alive = Seen.nothing(mask, config.threshold), DynamicCache(config=base.model.config), mask
        inputs, positions = ids, seen.order.clamp(min=0)
        written: list[Tensor] = []
        running = torch.ones(len(ids), dtype=torch.bool, device=base.device)
        cached, steps = torch.zeros(len(ids), device=base.device), torch.zeros(len(ids), device=base.device)
        for step in range(config.max_tokens):
            output = base.model(
                input_ids=inputs, attention_mask=alive.long(), position_ids=positions, past_key_values=cache, use_cache=True,
                output_attentions=True, logits_to_keep=1,
            )  # fmt: skip
            weights = torch.stack(output.attentions).mean((0, 2))  # (B, new tokens, T)
            for row, at in zip(weights.unbind(1), positions.unbind(1), strict=True):
                seen.attend(row.masked_fill(~alive, 0), at)
            cached += alive.sum(1) * running
            steps += running
            if policy is not None and budgets is not None and (step + 1) % config.window == 0:
                alive = kept(alive, seen, policy(seen, generator), budgets, config.window)
            token = output.logits[:, -1].argmax(-1)
            running = running & ~torch.isin(token, self._ends)
            written.append(token.masked_fill(~running, -1))
            if not bool(running.any()):
                break
            seen.append()
            alive = torch.cat([alive, running[:, None]], dim=1)
            inputs, positions = token[:, None], seen.order[:, -1:]
        tokens = [[token for token in row if token >= 0] for row in torch.stack(written, dim=1).tolist()]
        return Decoded(tokens, (cached / steps).tolist(), seen)


def _spells(seen: Seen, row: int) -> Spells:
    gaps = seen.longest_gap[row][seen.order[row] >= 0]
    return Spells(float((gaps > 1).float().mean()), float(gaps.quantile(0.8)))


def summarise(spells: Sequence[Spells], written: Sequence[Sequence[Written]]) -> dict[str, Any]:
    full = statistics.fmean(of[0].cached for of in written)
    rows = [
        {
            "policy": first.policy,
            "budget": first.budget,
            "right": round(statistics.fmean(of[at].right for of in written), 4),
            "same": round(statistics.fmean(of[at].same for of in written), 4),
            "tokens": round(statistics.fmean(of[at].tokens for of in written), 1),
            "cache": round(statistics.fmean(of[at].cached for of in written) / full, 4),
        }
        for at, first in enumerate(written[0])
    ]
    return {
        "questions": len(written),
        "recurring": round(statistics.fmean(one.recurring for one in spells), 4),
        "longest_gap_p80": round(statistics.fmean(one.longest_gap_p80 for one in spells), 1),
        "rows": rows,
    }


def markdown(figures: Mapping[str, Any]) -> str:
    whole, *others = figures["rows"]
    budgets = list(dict.fromkeys(row["budget"] for row in others))
    by_policy = {policy: list(of) for policy, of in itertools.groupby(others, lambda row: row["policy"])}

    def cells(of: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        for row in of:
            yield from (f"{row['right']:.3f}", f"{row['tokens']:.0f}")

    header = ["kept", *(f"{name}, {share:.0%}" for share in budgets for name in ("right", "tokens"))]
    said = (
        f"{figures['questions']} questions. With the whole cache {whole['right']:.3f} right, {whole['tokens']:.0f} tokens; "
        f"{figures['recurring']:.0%} of tokens are attended to again after a quiet spell, and of their longest spells the 80th "
        f"percentile is {figures['longest_gap_p80']:.0f} steps."
    )
    return f"{said}\n\n{table(header, ((policy, *cells(of)) for policy, of in by_policy.items()))}"
