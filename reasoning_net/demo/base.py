"""Train the demo's base model from scratch: a small Qwen3 that can think in text and can answer directly.

    latentserve demo train-base --output runs/base

The checkpoint is an ordinary Hugging Face one: `--model runs/base` serves it, transformers loads it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset, get_worker_info
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from reasoning_net.demo.conversations import Conversation, conversation
from reasoning_net.demo.questions import FAMILIES, MAX_STEPS
from reasoning_net.demo.tokenizer import train_tokenizer
from reasoning_net.options import Optimiser, Seed, Share, Workers, commas
from reasoning_net.padding import padded
from reasoning_net.precision import autocast
from reasoning_net.training import Optimizer, OptimizerConfig, Run, drawn_ahead, run_clock, training_device

# The pieces of an answer are tokenised one by one, as the server does (reasoning_net/layout.py).
THINK, END_THINK = "<think>\n", "\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class BaseConfig:
    output: Path
    """Where the checkpoint goes; a run found there is resumed."""
    steps: PositiveInt = 2200
    """Optimiser steps."""
    seconds: PositiveFloat | None = None
    """Train for as long instead; the learning rate then follows the clock."""
    processor_seconds: bool = False
    """Count the seconds of the processor, all its cores together: to compare recipes on a machine that others use, too."""
    batch_tokens: PositiveInt = 8000
    """Tokens a batch."""
    direct_share: Share = 0.2
    """Share of conversations answered without a chain."""
    cut_share: Share = 0.08
    """Share of chains that are cut short and answered from what stands."""
    direct_weight: NonNegativeFloat = 2.0
    """Weight of a directly given reply's tokens: there are few of them, and nothing of the chain to lean on."""
    families: Annotated[tuple[str, ...], commas(str)] = FAMILIES
    """Comma-separated families of questions; one that is named twice is drawn twice as often."""
    start: Annotated[Path | None, Parameter(name="--from")] = None
    """Go on from this checkpoint instead of from scratch."""
    seed: Seed = 0
    hidden_size: PositiveInt = 192
    """Width of the model."""
    num_layers: PositiveInt = 6
    """Depth of the model."""
    workers: Workers = 6
    optimizer: Annotated[OptimizerConfig, Optimiser] = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, slots=True)
class _Sample:
    token_ids: list[int]
    labels: list[int]
    """−100 where nothing is learnt."""
    weight: float


def model_config(hidden_size: int, num_layers: int, tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """A Qwen3 of this width and depth, heads of 32."""
    return Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=max(1, hidden_size // 96),
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def draw_sample(rng: random.Random, tokenizer: PreTrainedTokenizerBase, config: BaseConfig, max_steps: int) -> _Sample:
    talk = conversation(rng, "train", (1, max_steps), config.families)
    prompt = tokenizer.apply_chat_template(talk.messages, add_generation_prompt=True, tokenize=False)
    reply, weight = talk.reply, 1.0
    pieces = [(str(prompt), False)]  # and whether they are learnt
    if rng.random() < config.direct_share:
        pieces, weight = [*pieces, ("<think>\n\n</think>\n\n", False)], config.direct_weight
    elif rng.random() < config.cut_share and len(talk.standing) > 1:
        # Where a chain ends is not learnt from those that were cut.
        chain, reply = cut(rng, talk)
        pieces += [(THINK, True), (chain, True), (END_THINK, False)]
    else:
        pieces += [(THINK, True), (talk.chain, True), (END_THINK, True)]
    encoded = [(tokenizer.encode(text), learnt) for text, learnt in (*pieces, (f"{reply}<|im_end|>", True))]
    labels = [token if learnt else -100 for ids, learnt in encoded for token in ids]
    return _Sample([token for ids, _ in encoded for token in ids], labels, weight)


def cut(rng: random.Random, talk: Conversation) -> tuple[str, str]:
    """(the beginning of a chain, the reply that it allows): up to the end of a line, or to the middle of the next one."""
    lines = talk.chain.split("\n")
    kept = rng.randint(1, len(lines) - 1)
    words = lines[kept].split(" ")
    rest = words[: rng.randrange(len(words))] if rng.random() < 0.5 else []
    return "\n".join([*lines[:kept], *([" ".join(rest)] if rest else [])]), talk.standing[kept - 1]


@dataclass(frozen=True, slots=True)
class _Batches(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Endless (token ids, labels, weights), each (B, T), of about `batch_tokens`, samples of like length together."""

    config: BaseConfig
    tokenizer: PreTrainedTokenizerBase
    first_step: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = get_worker_info()
        step, stride = self.first_step, worker.num_workers if worker else 1
        while True:
            rng = random.Random(f"{self.config.seed}-{step}-{worker.id if worker else 0}")
            share = step / self.config.steps
            max_steps = min(MAX_STEPS, 2 + int(share / 0.2 * (MAX_STEPS - 1)))  # a curriculum: all eight after 20 %
            batches = self._pool(rng, max_steps)
            step += len(batches) * stride
            yield from (_collate(batch, int(self.tokenizer.pad_token_id)) for batch in batches)

    def _pool(self, rng: random.Random, max_steps: int) -> list[list[_Sample]]:
        samples = [draw_sample(rng, self.tokenizer, self.config, max_steps) for _ in range(600)]
        batches: list[list[_Sample]] = [[]]
        for sample in sorted(samples, key=lambda sample: len(sample.token_ids)):
            if len(sample.token_ids) * (len(batches[-1]) + 1) > self.config.batch_tokens:
                batches.append([])
            batches[-1].append(sample)
        rng.shuffle(batches)
        return batches


def _collate(batch: list[_Sample], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    ids, labels = padded([sample.token_ids for sample in batch], fill=pad), padded([sample.labels for sample in batch])
    return ids, labels, torch.tensor([[sample.weight] for sample in batch]).repeat(1, ids.shape[1])


def main(config: BaseConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped, and write the checkpoint."""
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    if config.start:
        tokenizer = AutoTokenizer.from_pretrained(config.start)
        model = Qwen3ForCausalLM.from_pretrained(config.start, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer()
        model = Qwen3ForCausalLM(model_config(config.hidden_size, config.num_layers, tokenizer))
    model.to(training_device())
    optimizer = Optimizer(model, config.optimizer)
    clock = run_clock(processor=config.processor_seconds)
    run = Run(config.output / "run", model, optimizer, config.steps, "base", seconds=config.seconds, clock=clock)
    batches: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
    for step in run.steps():
        batches = batches or drawn_ahead(_Batches(config, tokenizer, step), model.device, config.workers)
        ids, labels, weights = next(batches)
        targets, chosen = labels[:, 1:], labels[:, 1:] != -100
        with autocast(model.device):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][chosen])
        nll = cross_entropy(logits.float(), targets[chosen], reduction="none")
        weight = weights[:, 1:][chosen]
        (nll * weight).mean().backward()
        optimizer.step(step, run.share(step))
        direct = weight != 1.0
        figures = {"chain": nll[~direct], "direct": nll[direct]}
        run.report(step, {name: float(values.detach().mean()) for name, values in figures.items() if values.numel()})
        if (step + 1) % 300 == 0:
            save(model, tokenizer, config.output)
    save(model, tokenizer, config.output)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write a Hugging Face checkpoint in bf16: weights, config, tokenizer, chat template, generation config."""
    half = Qwen3ForCausalLM(model.config).bfloat16()
    half.load_state_dict(model.state_dict())
    half.config.architectures = ["Qwen3ForCausalLM"]
    half.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=0.3
    )
    half.save_pretrained(output)
    tokenizer.save_pretrained(output)
