"""Stage 1 of Latent Reasoning Tuning: train the reasoning network on questions and replies, the base frozen.

    latentserve train sft --model runs/base --output runs/sft

Loss: −log P_θ(Y | [X, z]), z = G_φ(H_X) (section 3.2 of the paper); only φ is trained. Where we differ:

- A curriculum over the task's levels: the next opens when the replies of the hardest open one are likely enough, or on time.
- In the later part of the run half of the batches draw their number of latents, so that one network serves several budgets.
- Where a task knows the chain's intermediate results, an auxiliary loss reads them off the first latents for part of the run.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from reasoning_net.config import Conditioner, ReasoningNetConfig
from reasoning_net.curriculum import POOL_BATCHES, Batches, Curriculum, Sample
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import Layout, LayoutIds
from reasoning_net.model import ReasoningNet, config_of_backbone, embedding_rms, load_backbone
from reasoning_net.precision import autocast, compute_dtype
from reasoning_net.tasks import TaskSpec
from reasoning_net.training import Optimizer, OptimizerConfig, Run, averaged, compiled

_SHARPNESS = 12.0  # of the softmax over cosine similarities
NESTED_SIZES = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class SftConfig:
    """The defaults train the demo's network; `deploy/train.sh` has those for a model like Qwen3-1.7B."""

    model: str
    output: Path
    task: TaskSpec = field(default_factory=TaskSpec)
    layout: Path | None = None
    """The prompt layout as JSON, where it does not follow from the base's tokenizer and chat template."""
    steps: int = 4000
    batch_size: int = 64
    accumulate: int = 1
    """Batches a step: as many gradients are added up before an update."""
    num_latents: int = 16
    """Latents per question until the nested part of the run."""
    max_latents: int = 256
    nested_from: float = 0.4
    """From this share of the steps on, half of the batches draw their number of latents from `NESTED_SIZES`."""
    conditioner: Conditioner = "all+embeddings"
    backbone: str | None = None
    """A pre-trained Qwen3 to start from; without it a fresh one of this size:"""
    hidden_size: int = 160
    num_layers: int = 6
    milestone_weight: float = 0.5
    milestones_until: float = 0.6
    """Weight of the auxiliary loss on the chain's intermediate results, and the share of the steps that it is used for."""
    start_level: int = 2
    next_level_nll: float = 0.5
    """The next level opens when the mean NLL (nats per reply) at the hardest open one is below this."""
    all_levels_by: float = 0.5
    """By this share of the steps every level is open, however likely its replies are."""
    max_prompt_tokens: int = 1024
    max_reply_tokens: int = 512
    """Longer examples are left out, and counted."""
    average_decay: float = 0.0
    """Of an exponential moving average of the weights, which is then what is saved; 0: none."""
    checkpointing: bool = False
    """Recompute the base's activations in the backward pass, for memory."""
    save_every: int = 200
    """Steps between two checkpoints. A multiple of `POOL_BATCHES`, so that a resumed run draws the same batches."""
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_lr=0.015, adamw_lr=0.002))

    def __post_init__(self) -> None:
        if self.save_every % POOL_BATCHES:
            raise StageError(f"Checkpoints come every multiple of {POOL_BATCHES} steps, not every {self.save_every}.")


def new_network(config: SftConfig, base: FrozenBase) -> ReasoningNet:
    net = ReasoningNet(network_config(config, base.hidden_size), embedding_rms(base.embed.weight)).to(base.device)
    if config.backbone:
        load_backbone(net, config.backbone)
    return net


def network_config(config: SftConfig, base_hidden_size: int) -> ReasoningNetConfig:
    """The backbone's architecture, or a fresh one whose other sizes follow from its width."""
    if config.backbone:
        return config_of_backbone(config.backbone, base_hidden_size, config.max_latents, config.conditioner)
    if config.hidden_size % 32:
        raise StageError(f"The width of the network must be a multiple of 32 (heads are 32 wide), not {config.hidden_size}.")
    return ReasoningNetConfig(
        base_hidden_size=base_hidden_size,
        num_latent_tokens=config.max_latents,
        conditioner=config.conditioner,
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 8 // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.hidden_size // 32,
        num_key_value_heads=config.hidden_size // 32,
    )


def main(config: SftConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped; writes `reasoning_net.safetensors`."""
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    accelerator = Accelerator()
    task, device = config.task.load(), accelerator.device
    base = FrozenBase(config.model, device, compute_dtype(device), checkpointing=config.checkpointing)
    layout = base.layout(config.layout)
    ids = layout.token_ids(base.tokenizer)
    net = new_network(config, base)
    optimizer = Optimizer(net, config.optimizer, config.steps)
    average = averaged(net, config.average_decay)
    trained = net if average is None else cast("ReasoningNet", average.module)  # what is saved
    curriculum = Curriculum(task.levels, config.start_level, config.next_level_nll)
    run = Run(config.output / "run", net, optimizer, config.steps, "sft", average=average, is_main=accelerator.is_main_process)
    if run.extra:
        curriculum.load_state_dict(run.extra["curriculum"])
    think = compiled(accelerator.prepare_model(net) if accelerator.num_processes > 1 else net)
    batches = Batches(task, base, curriculum, config.batch_size, config.max_prompt_tokens, config.max_reply_tokens)
    for step in run.steps(config.save_every):
        curriculum.open_at_least(int(task.levels * step / (config.all_levels_by * config.steps)))
        milestone_weight = config.milestone_weight if step < config.milestones_until * config.steps else 0.0
        for part in range(config.accumulate):
            rng = random.Random(f"{config.seed}-{step}-{part}-{accelerator.process_index}")
            batch, num_latents = batches.next(rng), draw_num_latents(config, step, rng)
            batch = batch[: batch_at_equal_cost(len(batch), min(config.num_latents, config.max_latents), num_latents)]
            nll, hints = losses(think, base, ids, batch, num_latents)
            accelerator.backward((nll.mean() + milestone_weight * hints) / config.accumulate)
            curriculum.update([sample.example.level for sample in batch], nll.tolist())
        optimizer.step(step)
        if average is not None:
            average.update_parameters(net)
        run.extra = {"curriculum": curriculum.state_dict()}
        run.report(step, {"nll": float(nll.detach().mean()), "hints": float(hints.detach())}, {"level": curriculum.open})
        if (step + 1) % config.save_every == 0 and accelerator.is_main_process:
            save(trained, layout, config.output)
    if accelerator.is_main_process:
        save(trained, layout, config.output)
    accelerator.wait_for_everyone()  # a process that leaves early can leave the others waiting for it
    accelerator.end_training()


def draw_num_latents(config: SftConfig, step: int, rng: random.Random) -> int:
    """In the nested part of the run, for half of the batches one of the `NESTED_SIZES` that the network can compute."""
    if step >= config.nested_from * config.steps and rng.random() < 0.5:
        return rng.choice(tuple(n for n in NESTED_SIZES if n <= config.max_latents) or (config.max_latents,))
    return min(config.num_latents, config.max_latents)


def batch_at_equal_cost(batch_size: int, num_latents: int, larger: int) -> int:
    """Questions with `larger` latents each whose step costs about as much as `batch_size` with `num_latents`."""
    return max(8, batch_size * 2 * num_latents // (num_latents + larger))


def losses(
    think: Callable[..., Tensor], base: FrozenBase, layout: LayoutIds, batch: list[Sample], num_latents: int
) -> tuple[Tensor, Tensor]:
    """NLL (B,), in nats per reply, and the auxiliary loss."""
    with autocast(base.device):
        prompt = base.read([sample.prompt_ids for sample in batch])
        latents = think(prompt.hidden_states, prompt.embeddings, prompt.mask, num_latents)
        answers = answer_ids(base, [sample.example.reply for sample in batch])
        logits = base.answer_logits(prompt, base.prefix(layout, latents), answers.clamp(min=0))
    nll = cross_entropy(logits.float().transpose(1, 2), answers, ignore_index=-100, reduction="none")
    return nll.sum(1), milestone_loss(base, latents, [sample.example.milestones for sample in batch])


def answer_ids(base: FrozenBase, replies: list[str]) -> Tensor:
    """Y with its end-of-turn token, (B, Y), −100 where there is none."""
    end = int(base.tokenizer.eos_token_id)
    return labels([[*base.tokenizer.encode(reply, add_special_tokens=False), end] for reply in replies], base.device)


def labels(rows: list[list[int]], device: torch.device) -> Tensor:
    """Rows of token ids as one tensor, −100 where a row has ended."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=-100).to(device)


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


def save(net: ReasoningNet, layout: Layout, output: Path) -> None:
    """Write the network's weights in bf16, its architecture and its layout."""
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in net.state_dict().items()}
    output.mkdir(parents=True, exist_ok=True)
    save_file(weights, output / "reasoning_net.safetensors")
    (output / "config.json").write_text(net.config.model_dump_json(indent=2))
    (output / "layout.json").write_text(layout.model_dump_json(indent=2))


def load_net(output: Path) -> tuple[ReasoningNet, Layout]:
    """The network and layout that `save` wrote; raises `StageError` when there is none."""
    if not (output / "config.json").is_file():
        raise StageError(f"{output} has no reasoning network: train one with `latentserve train sft --output {output}`.")
    config = ReasoningNetConfig.model_validate_json((output / "config.json").read_text())
    net = ReasoningNet(config)
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(output / "reasoning_net.safetensors").items()})
    return net.eval(), Layout.model_validate_json((output / "layout.json").read_text())
