"""Stage 1 of Latent Reasoning Tuning: train the reasoning network on questions and replies, the base frozen.

    latentserve train sft --model runs/base --output runs/sft

Loss: −log P_θ(Y | [X, z]), z = G_φ(H_X) (section 3.2 of the paper); only φ is trained. Where we differ:

- A curriculum over the task's levels: the next opens when the replies of the hardest open one are likely enough, or on time.
- In the last part of the run half of the batches draw their number of latents, so that one network serves several budgets.
- Where a task knows the chain's intermediate results, an auxiliary loss reads them off the first latents for part of the run.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoConfig, AutoTokenizer

from reasoning_net.config import ReasoningNetConfig
from reasoning_net.demo.tokenizer import LATENT_TOKEN
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout
from reasoning_net.model import ReasoningNet, embedding_rms
from reasoning_net.tasks import TASKS, Example, Task
from reasoning_net.training import Optimizer, OptimizerConfig, Run

POOL_BATCHES = 8  # divides the steps between two saves, so that a resumed run draws the same pools
_SHARPNESS = 12.0  # of the softmax over cosine similarities
NESTED_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class SftConfig:
    model: str
    output: Path
    net: ReasoningNetConfig
    layout: Layout
    task: str = "demo"
    steps: int = 3600
    batch_size: int = 64
    num_latents: int = 16
    """Latents per question until the nested part of the run."""
    nested_sizes: tuple[int, ...] = NESTED_SIZES
    nested_from: float = 0.85
    """From this share of the steps on, half of the batches draw their number of latents from `nested_sizes`."""
    milestone_weight: float = 0.5
    milestones_until: float = 0.6
    """Weight of the auxiliary loss on the chain's intermediate results, and the share of the steps that it is used for."""
    start_level: int = 2
    next_level_nll: float = 0.5
    """The next level opens when the mean NLL (nats per reply) at the hardest open one is below this."""
    all_levels_by: float = 0.5
    """By this share of the steps every level is open, however likely its replies are."""
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_lr=0.015, adamw_lr=0.002))


def default_config(
    model: str,
    output: Path,
    steps: int,
    num_latents: int,
    max_latents: int,
    conditioner: str,
    hidden_size: int,
    num_layers: int,
    batch_size: int,
    seed: int,
) -> SftConfig:
    """The configuration for a base with Qwen3's think tags; the rest of the network's shape follows from its width."""
    base = AutoConfig.from_pretrained(model)
    net = ReasoningNetConfig(
        base_hidden_size=base.hidden_size,
        num_latent_tokens=max_latents,
        conditioner=conditioner,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
    )
    nested = tuple(n for n in NESTED_SIZES if n <= max_latents) or (max_latents,)
    return SftConfig(
        model, output, net, default_layout(model), steps=steps, batch_size=batch_size,
        num_latents=min(num_latents, max_latents), nested_sizes=nested, seed=seed,
    )  # fmt: skip


class Curriculum:
    """Which levels are open, by a running mean of the NLL at each."""

    def __init__(self, levels: int, start: int, threshold: float) -> None:
        self.levels, self.open, self._threshold = levels, min(start, levels), threshold
        self._nll: dict[int, float] = {}

    def open_at_least(self, level: int) -> None:
        self.open = max(self.open, min(level, self.levels))

    def draw(self, rng: random.Random) -> int:
        """A level: the newest one in two of five draws while not all are open, else uniform."""
        newest = self.open < self.levels and rng.random() < 0.4
        return self.open if newest else rng.randint(1, self.open)

    def update(self, levels: list[int], nll: list[float]) -> None:
        for level in set(levels) - {0}:
            values = [value for at, value in zip(levels, nll, strict=True) if at == level]
            mean = sum(values) / len(values)
            self._nll[level] = 0.9 * self._nll.get(level, 3.0) + 0.1 * mean
        if self.open < self.levels and self._nll.get(self.open, 3.0) < self._threshold:
            self.open += 1

    def state_dict(self) -> dict[str, object]:
        return {"open": self.open, "nll": self._nll}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.open, self._nll = state["open"], state["nll"]  # type: ignore[assignment]


def main(config: SftConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped; writes `reasoning_net.safetensors`."""
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    task = TASKS[config.task]()
    base = FrozenBase(config.model, dtype=torch.bfloat16)
    layout = config.layout.token_ids(base.tokenizer)
    net = ReasoningNet(config.net, embedding_rms(base.embed.weight))
    optimizer = Optimizer(net, config.optimizer, config.steps)
    curriculum = Curriculum(task.levels, config.start_level, config.next_level_nll)
    run = Run(config.output / "run", net, optimizer, config.steps, "sft")
    if run.extra:
        curriculum.load_state_dict(run.extra["curriculum"])
    pool: list[list[_Sample]] = []
    for step in run.steps():
        rng = random.Random(f"{config.seed}-{step}")
        curriculum.open_at_least(int(task.levels * step / (config.all_levels_by * config.steps)))
        pool = pool or draw_pool(task, base, rng, curriculum, config.batch_size)
        batch = pool.pop()
        num_latents = config.num_latents
        if step >= config.nested_from * config.steps and rng.random() < 0.5:
            num_latents = rng.choice(config.nested_sizes)
        # A larger budget gets a smaller batch, so that every step costs about the same.
        batch = batch[: max(8, len(batch) * 2 * config.num_latents // (config.num_latents + num_latents))]
        with torch.autocast(base.device.type, torch.bfloat16):
            prompt = base.read([sample.prompt_ids for sample in batch])
            latents = net(prompt.hidden_states, prompt.embeddings, prompt.mask, num_latents)
            answers = answer_ids(base, [sample.example.reply for sample in batch])
            logits = base.answer_logits(prompt, base.prefix(layout, latents), answers.clamp(min=0))
        nll = cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=-100, reduction="none")
        nll = nll.view(answers.shape).sum(1)  # (B,), nats per reply
        hints = milestone_loss(base, latents, [sample.example.milestones for sample in batch])
        weight = config.milestone_weight if step < config.milestones_until * config.steps else 0.0
        optimizer.step(nll.mean() + weight * hints, step)
        curriculum.update([sample.example.level for sample in batch], nll.tolist())
        run.extra = {"curriculum": curriculum.state_dict()}
        run.report(step, {"nll": float(nll.detach().mean()), "hints": float(hints.detach()), "level": curriculum.open})
        if (step + 1) % 200 == 0:
            save(net, config)
    save(net, config)


@dataclass(frozen=True, slots=True)
class _Sample:
    example: Example
    prompt_ids: list[int]


def draw_pool(task: Task, base: FrozenBase, rng: random.Random, curriculum: Curriculum, size: int) -> list[list[_Sample]]:
    """`POOL_BATCHES` batches of `size`, prompts of like length together, in random order."""
    streams: dict[int, Iterator[Example]] = {}
    samples: list[_Sample] = []
    while len(samples) < POOL_BATCHES * size:
        level = curriculum.draw(rng)
        if level not in streams:
            streams[level] = task.examples(rng.getrandbits(32), "train", level)
        # The stream holds levels up to `level`: skip to one at it, or to an example outside the curriculum.
        example = next(example for example in streams[level] if example.level in (0, level))
        samples.append(_Sample(example, base.prompt_ids(example.messages)))
    samples.sort(key=lambda sample: len(sample.prompt_ids))
    batches = [samples[at : at + size] for at in range(0, len(samples), size)]
    for batch in batches:
        rng.shuffle(batch)
    rng.shuffle(batches)
    return batches


def answer_ids(base: FrozenBase, replies: list[str]) -> Tensor:
    """Y with its end-of-turn token, (B, Y), −100 where there is none."""
    rows = [[*base.tokenizer.encode(reply, add_special_tokens=False), int(base.tokenizer.eos_token_id)] for reply in replies]
    ids = torch.full((len(rows), max(map(len, rows))), -100, device=base.device)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def milestone_loss(base: FrozenBase, latents: Tensor, milestones: list[tuple[str, ...]]) -> Tensor:
    """Cross-entropy of reading the j-th intermediate result off the j-th latent, by similarity to the base's embeddings.

    Nothing constrains the latents after the last result. Results that are more than one token are left out.
    """
    targets = torch.full(latents.shape[:2], -100, device=latents.device)  # (B, N)
    for row, texts in enumerate(milestones):
        for slot, text in enumerate(texts[: latents.shape[1]]):
            ids = base.tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == 1:
                targets[row, slot] = ids[0]
    if not bool((targets >= 0).any()):
        return latents.sum() * 0.0
    chosen = targets >= 0
    similarity = normalize(latents[chosen].float(), dim=-1) @ normalize(base.embed.weight.float(), dim=-1).T
    return cross_entropy(similarity * _SHARPNESS, targets[chosen])


def save(net: ReasoningNet, config: SftConfig) -> None:
    """Write the network's weights in bf16, its architecture and its layout."""
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in net.state_dict().items()}
    save_file(weights, config.output / "reasoning_net.safetensors")
    (config.output / "config.json").write_text(config.net.model_dump_json(indent=2))
    (config.output / "layout.json").write_text(config.layout.model_dump_json(indent=2))


def load_net(output: Path | None, model: str) -> tuple[ReasoningNet | None, Layout]:
    """The network and layout that `main` wrote; without an output no network, and the layout of the base's own tokens."""
    if output is None:
        return None, default_layout(model)
    config = ReasoningNetConfig.model_validate_json((output / "config.json").read_text())
    net = ReasoningNet(config)
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(output / "reasoning_net.safetensors").items()})
    return net.eval().requires_grad_(False), Layout.model_validate_json((output / "layout.json").read_text())


def default_layout(model: str) -> Layout:
    """Qwen3's think tags, and the base's reserved token for latents."""
    return Layout(placeholder_token_id=AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(LATENT_TOKEN))
