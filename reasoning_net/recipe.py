"""What follows from the shapes of a base and of the data: a network's size, batches, learning rates, lengths, questions.

Few dials, after nanochat. Two points are known, and the rules go through them: the demo (192 wide, 6 layers; a network 160 wide
and 7 deep, chains of 240 tokens, 16 latents) was trained with the numbers that come out for it, and the paper's 1.7B with 256
latents for chains of thousands of tokens, in batches of 64 and three epochs. What lies between was not measured.

Shapes: d hidden size of the base, w of the network, N latents, T prompt tokens, Y reply tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Device = Literal["cpu", "cuda"]
MAX_LATENTS = 256
_STEP = 64
"""Questions a step, as in the paper."""
_FLOATS_A_BATCH = 1e12
"""Operations of a batch on a CPU: more would be no faster, and show no progress for minutes."""
_CHAINS = 3000
"""That a router is fitted on, at most, of 8,000 questions; fewer where as many would take more than half an hour."""
_CHAIN_SECONDS = 1800
_HEADS = 32


@dataclass(frozen=True, slots=True)
class BaseShape:
    """Of a causal LM, from its config.json."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    bytes_a_weight: int
    max_tokens: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "BaseShape":
        config = config.get("text_config") or config  # those that see pictures, too
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        dtype = str(config.get("torch_dtype") or config.get("dtype") or "float32")
        return cls(
            hidden_size=hidden,
            num_layers=config["num_hidden_layers"],
            intermediate_size=config.get("intermediate_size") or 4 * hidden,
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab_size=config["vocab_size"],
            is_tied=bool(config.get("tie_word_embeddings", False)),
            bytes_a_weight=4 if dtype.endswith("float32") else 2,
            max_tokens=config.get("max_position_embeddings") or 2048,
        )

    @property
    def layer_parameters(self) -> int:
        """Of all layers: what computes. Attention and a gated MLP, without norms."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)

    def kv_bytes(self, bytes_a_value: int) -> int:
        """Of a token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_a_value


@dataclass(frozen=True, slots=True)
class DataShape:
    """Of the questions, and of what the base made of a sample of them."""

    train: int | None
    """Questions; None where they are made."""
    held_out: int | None
    """Questions of validation."""
    usual_prompt_tokens: int
    """Half of the prompts have no more."""
    prompt_tokens: int
    """99 of 100."""
    reply_tokens: int
    """Nor replies."""
    chain_tokens: int
    """A chain and its reply; half of them have no more."""
    longest_chain_tokens: int
    """99 of 100."""


@dataclass(frozen=True, slots=True)
class Machine:
    device: Device
    memory_bytes: int
    """That is free."""
    bytes_a_value: int
    """In training."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured on a sample."""

    question_seconds: float
    """Of SFT, in a batch."""
    chain_tokens_a_second: float
    reply_seconds: float
    """Of a direct answer, in a batch."""
    start_seconds: float = 30.0
    """Of an engine."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a base is adapted."""

    hidden_size: int
    num_layers: int
    num_latents: int
    """In serving; training draws up to twice as many, and in its later part up to `MAX_LATENTS`."""
    batch_size: int
    accumulate: int
    steps: int
    muon_lr: float
    adamw_lr: float
    max_prompt_tokens: int
    max_reply_tokens: int
    max_thinking_tokens: int
    trace_questions: int
    """Thought through in text for the network to learn their replies; 0 where the data has chains, and replies of the base."""
    fit_questions: int
    """At most: with a network those of validation alone."""
    explicit_questions: int
    exit_questions: int
    checkpointing: bool
    """Recompute the base's activations: a batch would not fit into memory otherwise."""

    @classmethod
    def of(cls, base: BaseShape, data: DataShape, machine: Machine, costs: Costs | None = None) -> "Recipe":
        hidden_size, num_layers = network_size(base)
        num_latents = latents_for(data.chain_tokens)
        prompt, reply = _rounded(data.prompt_tokens, 64), _rounded(data.reply_tokens * 5 // 4, 16)
        fits = batch_that_fits(base, machine, prompt, 2 * num_latents + reply, reply, hidden_size, num_layers)
        step = 256 if data.train is None and machine.device == "cuda" else _STEP
        batch_size = max(1, min(step, fits))
        steps = steps_for(data.train, step, machine.device)
        chains = _CHAINS
        if costs:
            chains = int(_CHAIN_SECONDS * costs.chain_tokens_a_second / max(1, data.chain_tokens))
        chains = max(40, min(_CHAINS, chains))
        rows = math.inf if data.train is None or data.held_out is None else data.train + data.held_out
        questions = min(rows, chains * 8 / 3)
        if costs:  # four direct answers each
            questions = max(min(rows, 40), min(questions, _CHAIN_SECONDS / (4 * max(1e-6, costs.reply_seconds))))
        return cls(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_latents=num_latents,
            batch_size=batch_size,
            accumulate=-(-step // batch_size),
            steps=steps,
            muon_lr=0.015,  # its updates are orthogonal: they do not grow with the network
            adamw_lr=round(0.002 * (160 / hidden_size) ** 0.5, 6),  # as nanochat scales it
            max_prompt_tokens=prompt,
            max_reply_tokens=reply,
            max_thinking_tokens=min(_rounded(data.longest_chain_tokens * 5 // 4, 64), max(1, base.max_tokens - prompt)),
            trace_questions=0 if data.train is None else min(data.train, 20_000),
            fit_questions=int(questions),
            explicit_questions=max(1, chains // 3),
            exit_questions=int(max(20, min(300, chains // 4, rows))),
            checkpointing=fits < 1,
        )

    @property
    def trained_latents(self) -> int:
        return min(MAX_LATENTS, 2 * self.num_latents)

    @property
    def ladder(self) -> tuple[int, ...]:
        """Fewer latents, of which the probe learns whether they suffice."""
        return tuple(n for n in (self.num_latents // 8, self.num_latents // 4, self.num_latents // 2) if n)

    def quick(self) -> "Recipe":
        """Every stage in minutes, for a look at the way: a network that is trained for so short a time guesses."""
        batch = min(self.batch_size, 24)
        return replace(
            self, batch_size=batch, accumulate=1, steps=min(self.steps, 120), trace_questions=min(self.trace_questions, 256),
            fit_questions=min(self.fit_questions, 400), explicit_questions=min(self.explicit_questions, 100),
            exit_questions=min(self.exit_questions, 40), max_thinking_tokens=min(self.max_thinking_tokens, 512),
        )  # fmt: skip

    def within(self, hours: float, costs: Costs, data: DataShape, grpo: int = 0) -> "Recipe":
        """Fewer steps and fewer traces, so that all stages end in as many hours."""
        seconds = self.seconds(costs, data, grpo)
        flexible = seconds["traces"] + seconds["sft"]
        share = (hours * 3600 - (sum(seconds.values()) - flexible)) / max(1e-6, flexible)
        if share >= 1:
            return self
        share = max(share, 0.0)
        return replace(
            self, steps=max(8, int(self.steps * share)),
            trace_questions=max(64, int(self.trace_questions * share)) if self.trace_questions else 0,
        )  # fmt: skip

    def seconds(self, costs: Costs, data: DataShape, grpo: int = 0, *, has_network: bool = True) -> dict[str, float]:
        """What each stage takes, roughly. Half of the chains' cost again is that of answers along them (exits)."""
        chain = data.chain_tokens / max(1e-6, costs.chain_tokens_a_second)
        questions, answers = self.fit_questions, 4  # of a question
        if has_network:
            questions, answers = int(min(questions, data.held_out or math.inf)), 4 * (2 + len(self.ladder))
        chains = questions / 4 + min(self.explicit_questions, questions * 3 / 4)
        step = self.accumulate * self.batch_size * costs.question_seconds
        return {
            "traces": self.trace_questions * chain + (costs.start_seconds if self.trace_questions else 0),
            "sft": self.steps * step,
            "grpo": grpo * 8 * _STEP * (costs.reply_seconds + costs.question_seconds),
            "fit": costs.start_seconds + chains * chain + answers * questions * costs.reply_seconds,
            "exits": costs.start_seconds + 1.5 * self.exit_questions * chain,
        }


def network_size(base: BaseShape) -> tuple[int, int]:
    """(w, layers): both grow with the roots of the base's, so that what latents cost in serving shrinks beside it."""
    width = 11.5 * math.sqrt(base.hidden_size)
    return max(_HEADS, round(width / _HEADS) * _HEADS), max(1, round(2.86 * math.sqrt(base.num_layers)))


def latents_for(chain_tokens: int) -> int:
    """One for sixteen tokens of a chain, as a power of two from 16 to 128."""
    return max(16, min(128, 2 ** round(math.log2(max(1, chain_tokens) / 16))))


def steps_for(train: int | None, step: int, device: Device) -> int:
    """Three epochs, but up to thirty of few rows: a network from nothing takes a thousand steps before it says anything."""
    if train is None:
        return 24_000 if device == "cuda" else 4_000
    return max(8, -(-max(3 * train, min(30 * train, 1000 * step)) // step))


def batch_that_fits(
    base: BaseShape, machine: Machine, prompt: int, answered: int, reply: int, hidden_size: int, num_layers: int
) -> int:
    """Questions whose activations fit into half of what base and network leave, as a power of two; 0 where not one does.

    Gradients pass through the base at latents and reply (`answered`); of the prompt its keys and values are kept.
    """
    value = machine.bytes_a_value
    layer = 8 * base.hidden_size + 3 * base.intermediate_size + 4 * base.num_heads * base.head_dim
    network = (prompt + answered) * num_layers * 20 * hidden_size * 4
    question = answered * base.num_layers * layer * value + 3 * reply * base.vocab_size * 4
    question += prompt * base.kv_bytes(value) + network
    left = machine.memory_bytes - base.parameters * value - 16 * 12 * hidden_size**2 * num_layers
    most = left / 2 / question
    if machine.device == "cpu":
        floats = 2 * base.layer_parameters * (prompt + 3 * answered) + 6 * base.vocab_size * base.hidden_size * reply
        most = min(most, max(1, _FLOATS_A_BATCH / floats)) if most >= 1 else most
    return 2 ** int(math.log2(most)) if most >= 1 else 0


def memory_needed(base: BaseShape, machine: Machine) -> int:
    """Of any stage: the base once for the engine and once for training, and a quarter more, in bytes."""
    return int(1.25 * 2 * base.parameters * machine.bytes_a_value)


def _rounded(tokens: int, to: int) -> int:
    return max(to, -(-tokens // to) * to)
