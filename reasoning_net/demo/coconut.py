"""Coconut (Hao et al., 2412.06769) on the demo's own base: chains of thought become continuous thoughts, by training the base.

    latentserve demo train-base --coconut --families counting --seconds 600 --output runs/coconut

A thought is the final (normed) hidden state at one position, fed to the base as the input of the next position. In stage s the
first s steps (lines) of a chain are gone, and s · c thoughts stand in their place; the loss is on the rest. In the last stage
no text is left of the chain. The optimiser is reset at each stage. n thoughts take n + 1 passes in a row, in training, too.

Where we differ: Muon beside AdamW, and a learning rate that falls towards the end; stages are shares of the run, not epochs.
The paper's ablations are here as `--filler`: pause tokens, which take no extra passes, or nothing, where steps were.

Shapes: B batch, T prompt tokens, N thoughts, Y tokens to be written, d hidden size.
"""

import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn.functional import cross_entropy

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.demo.base import END_THINK, THINK, BaseConfig, save
from reasoning_net.demo.questions import MAX_STEPS, Question, draw
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LATENT_TOKEN
from reasoning_net.options import Share
from reasoning_net.padding import padded
from reasoning_net.precision import autocast
from reasoning_net.training import Optimizer, Run, run_clock, training_device

Filler = Literal["thoughts", "pauses", "nothing"]
_UNUSED = ("batch_tokens", "direct_share", "cut_share", "direct_weight", "hidden_size", "num_layers", "workers")
_SAVE_EVERY = 50


@dataclass(frozen=True, slots=True)
class CoconutConfig:
    coconut: bool = False
    """Train a base that thinks in text to think in its own hidden states instead, and ask it questions."""
    filler: Filler = "thoughts"
    """What stands where steps were. The paper's ablations: pauses, a token each; nothing."""
    thoughts_per_step: PositiveInt = 1
    """c: thoughts, or pauses, for a step that is gone."""
    stages: NonNegativeInt = 6
    """Stages before the last one: each takes one more step (line) away. 0: the whole chain is gone from the start."""
    last_stage: Share = 0.5
    """Share of the run that the last stage has, without any step; the others have equal parts of the rest."""
    max_steps: Annotated[PositiveInt, Field(le=MAX_STEPS)] = 4
    """The most operations of a question."""
    batch_size: PositiveInt = 32
    """Questions a batch."""
    questions: PositiveInt = 400
    """Test questions, asked at the end; as many of each number of operations."""
    net: Path | None = None
    """A network of `train sft`, asked the same questions."""
    net_latents: PositiveInt = 16
    """How many latents it thinks in."""

    def stage(self, share: float) -> int:
        """The stage when as much of the run is done, from 1; `stages` + 1 is the last."""
        if share >= 1 - self.last_stage:
            return self.stages + 1
        return 1 + int(share / (1 - self.last_stage) * self.stages)

    def fillers(self, stage: int) -> int:
        """How many thoughts, or pauses, a question has in a stage: the same for all, whatever the length of their chains."""
        return 0 if self.filler == "nothing" else self.thoughts_per_step * min(stage, self.stages)


@dataclass(frozen=True, slots=True)
class _Batch:
    prompt_ids: Tensor  # (B, T), with what opens the thinking, and pauses
    mask: Tensor  # (B, T) bool
    ids: Tensor  # (B, Y)
    labels: Tensor  # (B, Y); −100 where nothing is learnt


def train(config: BaseConfig, study: CoconutConfig) -> None:
    """Train, resuming where an earlier run of the same output stopped, and write the checkpoint."""
    check_options(config, study)
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    base = FrozenBase(config.start or DEMO_MODEL, training_device())
    base.model.requires_grad_(True)  # here it is not frozen
    optimizer = Optimizer(base.model, config.optimizer)
    run = Run(
        config.output / "run", base.model, optimizer, config.steps, "coconut",
        seconds=config.seconds, clock=run_clock(processor=config.processor_seconds),
    )  # fmt: skip
    for step in run.steps(_SAVE_EVERY):
        share = run.share(step)
        stage = study.stage(share)
        if stage != run.extra.get("stage"):
            optimizer.reset()
            run.extra = {"stage": stage, "first": step}
        batch = draw_batch(config, study, base, stage, step)
        number = study.fillers(stage) if study.filler == "thoughts" else 0
        with autocast(base.device):
            logits = answer_logits(base, batch.prompt_ids, batch.mask, number, batch.ids)
        learnt = batch.labels != -100
        loss = cross_entropy(logits[learnt].float(), batch.labels[learnt])
        loss.backward()
        optimizer.step(step - run.extra["first"], share)
        run.report(step, {"nll": float(loss.detach())}, {"stage": stage})
        if (step + 1) % _SAVE_EVERY == 0:
            save(base.model, base.tokenizer, config.output)
    save(base.model, base.tokenizer, config.output)


def check_options(config: BaseConfig, study: CoconutConfig) -> None:
    """Raise `StageError` for options that this training does not have."""
    given = [one.name for one in fields(BaseConfig) if one.name in _UNUSED and getattr(config, one.name) != one.default]
    if given:
        raise StageError(f"--coconut trains an existing base on chains: leave out --{given[0].replace('_', '-')}.")
    if study.questions < study.max_steps:
        raise StageError(f"--questions {study.questions} are fewer than the {study.max_steps} numbers of steps.")


def draw_batch(config: BaseConfig, study: CoconutConfig, base: FrozenBase, stage: int, step: int) -> _Batch:
    """The questions of a step, and what is left to be written in a stage."""
    rng, tokenizer = random.Random(f"coconut-{config.seed}-{step}"), base.tokenizer
    questions = [
        draw(rng, "train", rng.randint(1, study.max_steps), rng.choice(config.families)) for _ in range(study.batch_size)
    ]
    opening = tokenizer.encode(THINK)
    if study.filler == "pauses":
        opening += [tokenizer.convert_tokens_to_ids(LATENT_TOKEN)] * study.fillers(stage)
    prompts = [[*base.prompt_ids([{"role": "user", "content": one.question}]), *opening] for one in questions]
    targets = [
        [(token, learnt) for text, learnt in rest(one, stage, study.stages) for token in tokenizer.encode(text)]
        for one in questions
    ]
    ids = padded([[token for token, _ in target] for target in targets], fill=int(tokenizer.pad_token_id))
    labels = padded([[token if learnt else -100 for token, learnt in target] for target in targets])
    masks = padded([[1] * len(prompt) for prompt in prompts], fill=0, on_the_left=True).bool()
    prompt_ids = padded(prompts, fill=0, on_the_left=True)
    return _Batch(*(tensor.to(base.device) for tensor in (prompt_ids, masks, ids, labels)))


def rest(question: Question, stage: int, stages: int) -> list[tuple[str, bool]]:
    """What stands after the thoughts of a stage, in pieces, and whether these are learnt.

    In the last stage the thinking is ended for the model; before it learns to, behind the steps that are left.
    """
    left = "\n".join(question.chain.split("\n")[stage:]) if stage <= stages else ""
    pieces = [("\n", False), (left, True), (END_THINK, True)] if left else [(END_THINK, False)]
    return [*pieces, (f"{question.reply}<|im_end|>", True)]


def think(base: FrozenBase, prompt: Prompt, number: int) -> tuple[Tensor, Prompt]:
    """Thoughts (B, N, d), and the prompt that has read all but the last of them: N − 1 passes. The prompt before is used up."""
    thoughts = [prompt.hidden_states[:, -1:]]
    for _ in range(number - 1):
        state, prompt = base.read_on(prompt, thoughts[-1], prompt.mask.new_ones(len(prompt.mask), 1))
        thoughts.append(state)
    return torch.cat(thoughts, dim=1)[:, :number], prompt


def answer_logits(base: FrozenBase, prompt_ids: Tensor, mask: Tensor, number: int, ids: Tensor) -> Tensor:
    """Logits that predict each of `ids` (B, Y) after so many thoughts, (B, Y, V), with gradients through the thoughts."""
    prompt = base.read_embeddings(base.embed(prompt_ids), mask)
    thoughts, prompt = think(base, prompt, number)
    inputs = base.embed(ids[:, :-1])
    if number:
        states = base.extend(prompt, torch.cat([thoughts[:, -1:], inputs], dim=1))
    else:
        states = torch.cat([prompt.hidden_states[:, -1:], base.extend(prompt, inputs)], dim=1)
    return base.logits(states)
