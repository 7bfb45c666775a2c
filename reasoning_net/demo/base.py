"""Train the demo's base model from scratch: a small Qwen3 that can think in text and can answer directly.

    latentserve demo train-base --output runs/base

The checkpoint is an ordinary Hugging Face one: `--model runs/base` serves it, transformers loads it.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from reasoning_net.demo.conversations import conversation
from reasoning_net.demo.questions import MAX_STEPS
from reasoning_net.demo.tokenizer import train_tokenizer
from reasoning_net.precision import autocast
from reasoning_net.training import Optimizer, OptimizerConfig, Run, compiled

# The pieces of an answer are tokenised one by one, as the server does (reasoning_net/layout.py).
THINK, END_THINK = "<think>\n", "\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class BaseConfig:
    output: Path
    steps: int = 2200
    batch_tokens: int = 8000
    direct_share: float = 0.2
    """The share of conversations that are answered directly, without a chain."""
    direct_weight: float = 2.0
    """Weight of a directly given reply's tokens: there are few of them, and nothing of the chain to lean on."""
    start: Path | None = None
    """A checkpoint to go on from, instead of from scratch."""
    seed: int = 0
    hidden_size: int = 192
    num_layers: int = 6
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, slots=True)
class _Sample:
    token_ids: list[int]
    num_prompt_tokens: int
    """Up to here nothing is learnt."""
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


def _sample(rng: random.Random, tokenizer: PreTrainedTokenizerBase, config: BaseConfig, max_steps: int) -> _Sample:
    talk = conversation(rng, "train", max_steps)
    prompt = tokenizer.apply_chat_template(talk.messages, add_generation_prompt=True, tokenize=False)
    direct = rng.random() < config.direct_share
    pieces = [str(prompt), "<think>\n\n</think>\n\n"] if direct else [str(prompt), THINK, talk.chain, END_THINK]
    ids = [tokenizer.encode(piece) for piece in (*pieces, f"{talk.reply}<|im_end|>")]
    learnt_from = 2 if direct else 1
    return _Sample(list(itertools.chain(*ids)), sum(map(len, ids[:learnt_from])), config.direct_weight if direct else 1.0)


def _batches(
    seed: int, first_step: int, tokenizer: PreTrainedTokenizerBase, config: BaseConfig
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (token ids, labels, weights), each (B, T), of about `batch_tokens`, samples of like length together."""
    step = first_step
    while True:
        rng = random.Random(f"{seed}-{step}")
        share = step / config.steps
        max_steps = min(MAX_STEPS, 2 + int(share / 0.2 * (MAX_STEPS - 1)))  # a curriculum: all eight after 20 %
        pool = sorted((_sample(rng, tokenizer, config, max_steps) for _ in range(600)), key=lambda s: len(s.token_ids))
        batches: list[list[_Sample]] = [[]]
        for sample in pool:
            if len(sample.token_ids) * (len(batches[-1]) + 1) > config.batch_tokens:
                batches.append([])
            batches[-1].append(sample)
        rng.shuffle(batches)
        step += len(batches)
        yield from (_collate(batch, int(tokenizer.pad_token_id)) for batch in batches)


def _collate(batch: list[_Sample], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = [torch.tensor(sample.token_ids) for sample in batch]
    learnt = [row.masked_fill(torch.arange(len(row)) < s.num_prompt_tokens, -100) for row, s in zip(rows, batch, strict=True)]
    ids, labels = pad_sequence(rows, True, pad), pad_sequence(learnt, True, -100)
    return ids, labels, torch.tensor([[sample.weight] for sample in batch]).expand_as(ids)


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
    optimizer = Optimizer(model, config.optimizer, config.steps)
    run = Run(config.output / "run", model, optimizer, config.steps, "base")
    decoder = compiled(model.model)
    batches: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
    for step in run.steps():
        batches = batches or _batches(config.seed, step, tokenizer, config)
        ids, labels, weights = next(batches)
        targets, chosen = labels[:, 1:], labels[:, 1:] != -100
        with autocast(model.device):
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][chosen])
        nll = cross_entropy(logits.float(), targets[chosen], reduction="none")
        weight = weights[:, 1:][chosen]
        (nll * weight).mean().backward()
        optimizer.step(step)
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
