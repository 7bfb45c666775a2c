"""Thinking in mixtures of tokens: Soft Thinking (2505.15778), with noise (2508.03440), and LEAD's switching (2603.13366).

Where a chain's token is sampled, the likeliest tokens are kept with their weights, the largest one is what the sampler gets to
choose, and the next step's row is the mean of their embeddings. All is decided on the device: under asynchronous scheduling the
CPU learns of a token one step late. Mixtures are kept by position, since a request that was preempted computes its rows again.

LEAD's text-only form is ours: it anchors on the tags that open and close thinking, where the paper has visual tokens, with the
paper's constants instead of the code's ramp.

Shapes: B rows that sample, R rows that are written, V vocabulary, K tokens of a mixture, P = K + 1 with an anchor, d hidden
size.
"""

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from router.soft import MAX_PARTS, SoftThinking
from server.engine.work import Mix
from server.engine.worker.hooks import Row

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_FAR = 1e4
"""Below what the sampler may choose. Not infinite: what forbids that token afterwards falls back on the next likeliest."""


@dataclass(slots=True)
class State:
    """Of a chain, as numbers of one tensor; of B chains, (B,) each."""

    thinking: Tensor
    soft: Tensor
    reference: Tensor
    """LEAD: the entropy at the last switch."""
    in_text: Tensor
    returns: Tensor
    cold: Tensor
    steps: Tensor
    soft_steps: Tensor
    entropy: Tensor
    """Of its mixtures, summed; nats."""
    switches: Tensor

    @classmethod
    def first(cls, device: torch.device) -> Tensor:
        return torch.tensor([1.0, 1.0, *[0.0] * (len(fields(cls)) - 2)], device=device)

    @classmethod
    def of(cls, states: list[Tensor]) -> "State":
        return cls(*torch.stack(states).unbind(1))

    def each(self) -> list[Tensor]:
        return list(torch.stack([getattr(self, one.name) for one in fields(self)], 1).unbind())


@dataclass(slots=True)
class Knobs:
    """`SoftThinking` as numbers of one tensor, and the tags' tokens; of B chains, (B,) each."""

    k: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    lead: Tensor
    window: Tensor
    max_returns: Tensor
    anchor: Tensor
    closing_share: Tensor
    cold_entropy: Tensor
    cold_steps: Tensor
    opening: Tensor
    closing: Tensor

    @staticmethod
    def one(work: Mix, soft: SoftThinking, device: torch.device) -> Tensor:
        cold = math.inf if soft.cold_steps is None else soft.cold_steps
        of_lead = (soft.switch == "lead", soft.window, soft.max_returns, soft.anchor, soft.closing)
        tags = [-1 if tag is None else tag for tag in (work.opening, work.closing)]
        numbers = [soft.k, soft.temperature, soft.top_p, soft.min_p, *of_lead, soft.cold_entropy, cold, *tags]
        return torch.tensor(numbers, dtype=torch.float32, device=device)

    @classmethod
    def of(cls, knobs: list[Tensor]) -> "Knobs":
        return cls(*torch.stack(knobs).unbind(1))


@dataclass(slots=True, eq=False)
class Chain:
    """One request's, while the worker knows it."""

    key: str
    soft: SoftThinking
    knobs: Tensor
    state: Tensor
    generator: torch.Generator
    mixtures: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    """By position from the end of the prompt on: tokens and weights of a step, (B, P) each, and the chain's row in them."""


@dataclass(slots=True)
class Step:
    """What was prepared for the sampler."""

    places: list[tuple[Chain, int]]
    """Whose, and how many tokens of it came before."""
    index: Tensor
    """In the batch."""
    knobs: Knobs
    state: State
    ids: Tensor
    weights: Tensor
    """(B, K)"""
    largest: Tensor
    mixed: Tensor
    """Whether the next row is a mixture, if the largest part is sampled."""
    starts: Tensor
    returns: Tensor
    """LEAD: whether this is the first token of a segment of mixtures, or of text."""


class Mixtures:
    """Of all requests in flight that think so."""

    def __init__(self, runner: "GPUModelRunner", literal: list[int]) -> None:
        """`literal`: tokens that LEAD never mixes: letters, digits, signs."""
        self._embed, self._device = runner.model.embed_input_ids, runner.device
        self._literal = torch.zeros(runner.model_config.get_vocab_size(), dtype=torch.bool, device=self._device)
        self._literal[literal] = True
        self._chains: dict[str, Chain] = {}  # engine request id → chain
        self._ended: dict[str, Tensor] = {}  # key → state, until it is asked for
        self._most_ended = 4 * runner.max_num_reqs
        self._step: Step | None = None
        self._batch: tuple[list[Chain], Knobs, State] | None = None  # of the last step: mostly the next one's, too

    def __len__(self) -> int:
        return len(self._chains)

    def forget(self, request_id: str) -> None:
        """The request has ended. Whoever left before asking how it thought leaves that to be the oldest."""
        if chain := self._chains.pop(request_id, None):
            self._write_back()
            self._ended[chain.key] = chain.state
            if len(self._ended) > self._most_ended:
                del self._ended[next(iter(self._ended))]

    def summary(self, key: str) -> tuple[int, float, int] | None:
        """(steps in mixtures, their summed entropy in nats, switches) of a chain that has ended. Given once."""
        self._write_back()
        live = next((chain.state for chain in self._chains.values() if chain.key == key), None)
        state = self._ended.pop(key, None) if live is None else live
        if state is None:
            return None
        found = State.of([state])
        return int(found.soft_steps), float(found.entropy), int(found.switches)

    @torch.inference_mode()
    def write(self, rows: list[Row], inputs_embeds: Tensor) -> None:
        """Over the rows of decoded tokens that this step computes: one a request, or those of a recomputation."""
        targets, mixtures = list[int](), list[tuple[Tensor, Tensor, int]]()
        for row in rows:
            assert isinstance(row.work, Mix)
            for position in range(max(row.work.start, row.computed), row.reached):
                targets.append(row.first + position - row.computed)
                mixtures.append(self._chains[row.request_id].mixtures[position - row.work.start])
        if not targets:
            return
        ids, weights = _gathered(mixtures)  # (R, P)
        parts = self._embed(ids.flatten()).view(*ids.shape, -1)  # (R, P, d)
        inputs_embeds[targets] = (parts.float() * weights[..., None]).sum(1).to(inputs_embeds.dtype)

    @torch.inference_mode()
    def mix(self, rows: list[Row], logits: Tensor) -> None:
        """Prepare mixtures of what may be sampled, and leave the sampler the largest part of each."""
        chains = [self._chain(row) for row in rows]
        index = torch.tensor([row.index for row in rows], device=self._device)
        of, (knobs, state) = logits[index].float(), self._batch_of(chains)
        entropy = torch.special.entr(of.softmax(-1)).sum(-1)
        ids, log_weights = likeliest(of / knobs.temperature[:, None], knobs)
        weights = _noisy(log_weights, chains).softmax(-1)
        largest = ids.gather(1, weights.argmax(-1, keepdim=True))[:, 0]
        starts, returns, ends = follow(state, knobs, entropy)
        soft = (state.thinking * state.soft).bool() & ~ends
        chosen = torch.where(ends, knobs.closing.long(), largest)[:, None]
        only = (of - _FAR).scatter(1, chosen, of.gather(1, chosen))
        logits[index] = torch.where((soft | ends)[:, None], only, of).to(logits.dtype)
        mixed = soft & ~(knobs.lead.bool() & self._literal[largest])
        places = [(chain, row.reached - row.work.start) for chain, row in zip(chains, rows, strict=True)]  # type: ignore[union-attr]
        self._step = Step(places, index, knobs, state, ids, weights, largest, mixed, starts, returns)

    @torch.inference_mode()
    def keep(self, sampled_token_ids: Tensor) -> None:
        """The mixtures whose largest part was sampled, one token (B, 1) a request; of all others the token."""
        if (step := self._step) is None:
            return
        self._step, state, knobs = None, step.state, step.knobs
        sampled = sampled_token_ids[step.index, 0].long()
        closes = sampled == knobs.closing.long()
        mixed = step.mixed & (sampled == step.largest) & ~closes
        alone = torch.zeros_like(step.weights)
        alone[:, 0] = 1
        ids = torch.where(mixed[:, None], step.ids, sampled[:, None])
        weights = torch.where(mixed[:, None], step.weights, alone)
        back = step.returns & ~closes
        tag = torch.where(back, knobs.closing, knobs.opening)
        share = torch.where(back, knobs.closing_share, torch.where(step.starts & mixed, knobs.anchor, 0.0))
        share = torch.where(tag < 0, 0.0, share)[:, None]
        ids = torch.cat([ids, tag.long().clamp(min=0)[:, None]], 1)  # (B, P)
        weights = torch.cat([weights * (1 - share), share], 1)
        state.thinking = state.thinking * ~closes
        state.soft_steps = state.soft_steps + mixed
        state.entropy = state.entropy + mixed * torch.special.entr(step.weights).sum(-1)
        for row, (chain, position) in enumerate(step.places):
            chain.mixtures[position:] = [(ids, weights, row)]

    def _batch_of(self, chains: list[Chain]) -> tuple[Knobs, State]:
        """Of these chains side by side."""
        if self._batch is None or self._batch[0] != chains:
            self._write_back()
            self._batch = chains, Knobs.of([chain.knobs for chain in chains]), State.of([chain.state for chain in chains])
        return self._batch[1:]

    def _write_back(self) -> None:
        """The states of the last step into their chains."""
        if self._batch is not None:
            chains, _, state = self._batch
            self._batch = None
            for chain, of in zip(chains, state.each(), strict=True):
                chain.state = of

    def _chain(self, row: Row) -> Chain:
        work = row.work
        assert isinstance(work, Mix)
        if row.request_id not in self._chains:
            soft, generator = work.settings, torch.Generator(self._device).manual_seed(work.seed)
            knobs = Knobs.one(work, soft, self._device)
            self._chains[row.request_id] = Chain(work.key, soft, knobs, State.first(self._device), generator)
        return self._chains[row.request_id]


def _gathered(mixtures: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Tokens and weights of these, (R, P)."""
    ids, weights, _ = mixtures[0]
    rows = [row for _, _, row in mixtures]
    if all(of is ids for of, _, _ in mixtures):  # of one step, and mostly all of it
        return (ids, weights) if rows == list(range(len(ids))) else (ids[rows], weights[rows])
    return torch.stack([of[row] for of, _, row in mixtures]), torch.stack([of[row] for _, of, row in mixtures])


def likeliest(logits: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """The tokens that may be in a mixture and the logarithms of their weights, (B, K); those that may not have none. `logits`
    (B, V) are divided by the temperature."""
    log_p, ids = logits.log_softmax(-1).topk(min(MAX_PARTS, logits.shape[-1]))
    p = log_p.exp()
    rank = torch.arange(ids.shape[1], device=ids.device)
    before = p.cumsum(-1) - p  # of likelier ones
    kept = (rank < knobs.k[:, None]) & (before < knobs.top_p[:, None]) & (p >= p[:, :1] * knobs.min_p[:, None])
    kept[:, 0] = True
    return ids, log_p.masked_fill(~kept, -torch.inf)


def follow(state: State, knobs: Knobs, entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step on: LEAD's switches by the entropy (B,) of what may be sampled, and steps that are cold. Changes the state;
    gives (begins a segment of mixtures, returns to text, ends thinking)."""
    lead, first, soft, thinking = knobs.lead.bool(), state.steps == 0, state.soft.bool(), state.thinking.bool()
    returns = thinking & lead & soft & ~first & (entropy < state.reference)
    leaves = thinking & lead & ~soft & (entropy > state.reference) & (state.in_text >= knobs.window)
    state.soft = ((soft & ~returns) | leaves).float()
    state.reference = torch.where(first | returns | leaves, entropy, state.reference)
    state.in_text = torch.where(state.soft.bool(), 0.0, state.in_text + 1)
    state.returns, state.switches, state.steps = state.returns + returns, state.switches + returns + leaves, state.steps + 1
    state.cold = torch.where(entropy < knobs.cold_entropy, state.cold + 1, 0.0)
    ends = thinking & (knobs.closing >= 0) & ((state.returns > knobs.max_returns) | (state.cold >= knobs.cold_steps))
    return lead & (first | leaves), returns, ends


def _noisy(log_weights: Tensor, chains: list[Chain]) -> Tensor:
    """Logarithms of the weights, (B, K), with each request's own noise: Gumbel's on them, or as drawn from a Dirichlet
    distribution around them."""
    if all(chain.soft.noise == "none" for chain in chains):
        return log_weights
    noisy, tiny = log_weights.clone(), torch.finfo(log_weights.dtype).tiny
    for row, chain in zip(noisy, chains, strict=True):
        kept = row > -torch.inf
        if chain.soft.noise == "gumbel":
            drawn = torch.empty_like(row).exponential_(generator=chain.generator).clamp(min=tiny)
            row.copy_((row.log_softmax(-1) - drawn.log()) / chain.soft.noise_scale)
        elif chain.soft.noise == "dirichlet":
            concentration = torch.where(kept, chain.soft.noise_scale * row.softmax(-1), 1.0)
            drawn = torch._standard_gamma(concentration, generator=chain.generator).clamp(min=tiny)
            row.copy_(torch.where(kept, drawn.log(), -torch.inf))
    return noisy
