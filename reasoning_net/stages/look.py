"""What a base is, and what it makes of a sample of questions, before hours are spent on it.

`sample.jsonl` holds one question a line; a run found there goes on. `tokenizer.md` is what `check --tokenizer` says. `trial` is
a batch of SFT at the shapes that were chosen: how long training will take is measured, and not guessed.
"""

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import PositiveInt

from reasoning_net.batches import Batch
from reasoning_net.bundle import checkpoint_directory
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.gains import Asked
from reasoning_net.layout import Layout, default_layout
from reasoning_net.losses import losses
from reasoning_net.options import LayoutFile, Questions, Seed
from reasoning_net.precision import compute_dtype
from reasoning_net.recipe import BaseShape, Machine, memory_needed
from reasoning_net.rollouts import Sampling, VllmRollouts
from reasoning_net.stages.sft import SftConfig, first_network
from reasoning_net.stages.traces import LinesOf, append_batches
from reasoning_net.tasks import Example, TaskSpec, with_answers
from reasoning_net.tokenizer_check import load_tokenizer, markdown, run, warning
from reasoning_net.training import training_device

_BATCH = 16
_MAX_REPLY_TOKENS = 512
_TIMED = 2
_TRIED = 16  # questions: larger batches are hardly faster on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    model: str
    output: Path
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 48
    max_thinking_tokens: PositiveInt = 1024
    layout: LayoutFile = None
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Base:
    """What can be said of a base without loading it."""

    model: str
    kind: str
    shape: BaseShape
    layout: Layout
    tag_tokens: int
    """Of what ends a chain; 0 where nothing does."""
    tokenizer_warning: str | None
    machine: Machine

    @property
    def ends_chains(self) -> bool:
        """With one token: chains can be ended early."""
        return self.tag_tokens == 1

    def sentences(self) -> list[str]:
        gib, reserved = 2.0**30, self.layout.placeholder_token_id
        needed = memory_needed(self.shape, self.machine)
        tags = {0: "none", 1: "tokens of their own"}.get(self.tag_tokens, f"text, {self.tag_tokens} tokens at a chain's end")
        placeholder = "no token is reserved for latents" if reserved is None else f"token {reserved} is reserved for latents"
        return [
            f"{self.kind}, {self.shape.parameters / 1e6:,.0f} million parameters, {self.shape.hidden_size} wide, "
            f"{self.shape.num_layers} layers deep, {8 * self.shape.bytes_a_weight} bits a weight.",
            f"Think tags: {tags}; {placeholder}.",
            f"{self.machine.device}, computing in {8 * self.machine.bytes_a_value} bits: at least {needed / gib:.1f} GiB are "
            f"needed, {self.machine.memory_bytes / gib:.1f} GiB are free.",
            self.tokenizer_warning or "Its tokenizer and our layouts agree.",
        ]


def look(model: str, layout_file: Path | None = None, thinking_prompt: str | None = None) -> Base:
    """Raises `StageError` for what cannot be adapted, before anything is loaded."""
    described = checkpoint_directory(model) / "config.json"
    if not described.is_file():
        raise StageError(f"There is no model in {model}: a checkpoint directory has a config.json.")
    config = json.loads(described.read_text())
    tokenizer, shape, device = load_tokenizer(model), BaseShape.of(config), training_device()
    layout = (Layout.read(layout_file) if layout_file else default_layout(tokenizer, shape.vocab_size)).prompted(
        thinking_prompt
    )
    layout.check_explicit()
    ids = layout.token_ids(tokenizer)
    tag = tokenizer.encode(ids.end_of_thinking, add_special_tokens=False) if ids.end_of_thinking else ()
    machine = Machine("cuda" if device.type == "cuda" else "cpu", free_memory(device), compute_dtype(device).itemsize)
    found = Base(
        model, (config.get("architectures") or [config["model_type"]])[0], shape, layout, len(tag),
        warning(tokenizer, layout, has_latents=True), machine,
    )  # fmt: skip
    needed = memory_needed(shape, machine)
    if needed > machine.memory_bytes:
        raise StageError(
            f"{model} needs at least {needed / 2**30:.1f} GiB, and {machine.memory_bytes / 2**30:.1f} GiB are free here. "
            "Free some memory, or take a larger machine or a smaller base."
        )
    return found


def free_memory(device: torch.device) -> int:
    """Of the GPU, or of the machine and the group that this process belongs to."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    known = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(known["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in known else pages
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        available = min(available, max(0, int(most) - int(used.read_text())))
    return available


def sample(config: SampleConfig) -> list[Asked]:
    """Answer a few questions directly and with a chain."""
    task = config.task.load()
    examples = with_answers(task, config.seed, "train", config.n)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "sample.jsonl"
    tokenizer = load_tokenizer(config.model)
    if config.layout:  # `adapt` writes one for all its stages
        checks = run(tokenizer, Layout.read(config.layout), examples, random.Random(config.seed))
        (config.output / "tokenizer.md").write_text(f"{markdown(checks)}\n")

    def start() -> LinesOf[Example]:
        base = FrozenBase(config.model)
        layout = base.layout(config.layout).token_ids(base.tokenizer)
        engine = VllmRollouts(config.model, layout)
        direct = Sampling(max_tokens=min(_MAX_REPLY_TOKENS, config.max_thinking_tokens))
        explicit = Sampling(max_tokens=config.max_thinking_tokens)

        def answer(_: int, batch: Sequence[Example]) -> list[dict[str, object]]:
            prompts = [base.prompt_ids(example.messages) for example in batch]
            started = time.perf_counter()
            short = engine.from_tokens([[*ids, *layout.direct] for ids in prompts], direct)
            half = time.perf_counter()
            long = engine.from_tokens([[*ids, *layout.explicit] for ids in prompts], explicit)
            each = (half - started) / len(batch), (time.perf_counter() - half) / len(batch)
            lines = []
            for example, prompt, (one,), (other,) in zip(batch, prompts, short, long, strict=True):
                reply = layout.split(other.text)[1]
                right = reply is not None and task.is_correct(reply, example.answer)
                ended = other.finished if layout.end_of_thinking is None else reply is not None
                lengths = [len(one.token_ids)] if one.finished else [0]
                if layout.end_of_thinking and reply:
                    lengths.append(len(base.tokenizer.encode(reply, add_special_tokens=False)))
                asked = Asked(
                    len(prompt), float(task.is_correct(one.text, example.answer)), len(one.token_ids), float(right),
                    len(other.token_ids), ended, max(lengths), *each,
                )  # fmt: skip
                lines.append(asdict(asked))
            return lines

        return answer

    append_batches(path, examples, _BATCH, start, "sample")
    return [Asked(**json.loads(line)) for line in path.read_text().splitlines()]


def trial(config: SftConfig, prompt_tokens: int, reply_tokens: int) -> float:
    """Seconds of a question in a batch of SFT, of random tokens at these lengths. Raises `StageError` where it does not fit."""
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    device = training_device()
    size = config.batch_size if device.type == "cuda" else min(config.batch_size, _TRIED)
    base = FrozenBase(config.model, device, compute_dtype(device), checkpointing=config.checkpointing)
    net, layout = first_network(config, base)
    ids = layout.token_ids(base.tokenizer)
    none = torch.empty(size, 0, dtype=torch.long, device=device)
    batch = Batch(
        prompt_ids=torch.randint(len(base.tokenizer), (size, prompt_tokens), device=device),
        mask=torch.ones(size, prompt_tokens, dtype=torch.bool, device=device),
        targets=torch.randint(len(base.tokenizer), (size, reply_tokens), device=device),
        chain=none,
        hints=none,
        num_latents=torch.full((size,), config.num_latents, device=device),
        levels=torch.ones(size, dtype=torch.long, device=device),
        hint_weight=torch.tensor(0.0, device=device),
        computed=config.num_latents,
        num_rounds=1,
        kind="reply",
    )
    seconds = []
    for _ in range(1 + _TIMED):
        started = time.perf_counter()
        try:
            nll, _hints = losses(net, base, ids, batch)
            nll.mean().backward()
        except torch.OutOfMemoryError as error:
            raise StageError(f"A batch of {size} questions does not fit into this GPU's memory: free some of it.") from error
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / size
