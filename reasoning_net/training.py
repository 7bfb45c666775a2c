"""What every training stage shares: optimisers, schedule, progress, log, plot, and a checkpoint to resume from."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from reasoning_net.errors import StageError
from reasoning_net.muon import Muon
from reasoning_net.options import Share
from reasoning_net.plots import plot_curves
from reasoning_net.precision import found_device

_MAX_BAD_STEPS = 20
_SAVE_SECONDS = 600  # where steps are slow


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Muon for matrices inside the network, AdamW for embeddings, norms and everything else."""

    muon_lr: PositiveFloat = 0.02
    """Peak learning rate of matrices (Muon)."""
    adamw_lr: PositiveFloat = 0.003
    """Peak learning rate of everything else (AdamW)."""
    weight_decay: NonNegativeFloat = 0.01
    """Of the matrices."""
    warmup_steps: NonNegativeInt = 60
    """Steps over which the learning rate rises to its peak."""
    schedule: Literal["linear", "cosine"] = "linear"
    """linear: a plateau, then a straight line down; cosine: down from the end of the warm-up on."""
    anneal_share: Share = 0.5
    """linear: the last share of the steps over which the learning rate falls to 1 % of its peak."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are cut to this norm."""


class Optimizer:
    """Muon and AdamW behind one `step`, with warm-up and decay to (almost) zero."""

    def __init__(self, module: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        self._params = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for n, p in module.named_parameters() if p.requires_grad and p.ndim == 2 and _is_hidden_matrix(n)]
        ids = {id(p) for p in matrices}
        rest = [p for p in self._params if id(p) not in ids]
        self._optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay),
            *([torch.optim.AdamW(rest, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)] if rest else []),
        ]
        self._peaks = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        self._bad_steps = 0

    def step(self, step: int, share: float) -> float:
        """Clip, update, clear; the gradient's norm before clipping. A step whose gradient is not finite is left out.

        `share`: how much of the run is done, which the schedule follows.

        Raises `StageError` after twenty of those in a row.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._params, self._config.max_grad_norm))
        scale = learning_rate_scale(step, share, self._config)
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * scale
        is_finite = math.isfinite(norm)
        for optimizer in self._optimizers:
            if is_finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=False)  # CUDA graphs keep the buffers
        self._bad_steps = 0 if is_finite else self._bad_steps + 1
        if self._bad_steps == _MAX_BAD_STEPS:
            raise StageError(
                f"The gradient was not finite in {_MAX_BAD_STEPS} steps in a row (now step {step}). Lower the learning rate; "
                "the last checkpoint is from before, so the same command resumes from it."
            )
        return norm

    def reset(self) -> None:
        """Forget the moments: what is trained has changed."""
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _is_hidden_matrix(name: str) -> bool:
    return not any(part in name for part in ("embed", "lm_head", "queries", "rounds"))


def learning_rate_scale(step: int, share: float, config: OptimizerConfig) -> float:
    """The share of the peak learning rate at `step` (0-based), when `share` of the run is done."""
    warmup = (step + 1) / max(1, config.warmup_steps)
    warmed = min(0.999, share * config.warmup_steps / (step + 1))  # the share at which the warm-up ends
    cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, share - warmed) / (1 - warmed)))
    anneal = cosine if config.schedule == "cosine" else (1 - share) / max(1e-6, config.anneal_share)
    return max(0.01, min(1.0, warmup, anneal))


def run_clock(*, processor: bool) -> Callable[[], float]:
    """What the seconds of a run are counted by: the wall's clock, or the processor's, where others work on the same machine."""
    return time.process_time if processor else time.monotonic


def duration(seconds: float) -> str:
    """In the unit that people would say it in."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def training_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device(found_device())


def drawn_ahead(batches: IterableDataset[Any], device: torch.device, workers: int) -> Iterator[Any]:
    """Batches on `device`. For a GPU, which would wait for them, they are drawn in `workers` processes of their own."""
    workers = workers if device.type == "cuda" else 0
    for batch in DataLoader(batches, batch_size=None, num_workers=workers):
        yield send_to_device(batch, device)


def averaged(module: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of the weights; None where the decay is 0."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


class Run:
    """A resumable run in a directory: `state.pt` (ours alone, never shipped), `log.jsonl`, `curves.png`, a progress bar.

    The random streams of a run are functions of (seed, step), so a resumed run continues as if it had not stopped.
    """

    def __init__(
        self, directory: Path, module: nn.Module, optimizer: Optimizer, total_steps: int, title: str, *,
        average: AveragedModel | None = None, is_main: bool = True, seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`is_main`: whether this process writes; of several on as many GPUs one does. `seconds`: end after as many by `clock`,
        however many steps these were."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._module, self._optimizer, self._average = directory, module, optimizer, average
        self._state, self._log = directory / "state.pt", directory / "log.jsonl"
        self._total_steps, self._title, self._is_main = total_steps, title, is_main
        self._recent: dict[str, float] = {}
        self.extra: dict[str, Any] = {}
        """What a stage must find again when it resumes (a curriculum's level, say)."""
        self._first_step, self._seconds, self._limit, self._clock = 0, 0.0, seconds, clock
        if self._state.exists():
            state = torch.load(self._state, weights_only=True, map_location="cpu")
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            if average is not None:
                average.load_state_dict(state["average"])
            self._first_step, self.extra, self._recent = state["step"], state["extra"], state["recent"]
            self._seconds = state["seconds"]
        if is_main:
            # Records from after the checkpoint will be made again.
            self._log.write_text("".join(json.dumps(r) + "\n" for r in read_log(self._log) if r["step"] <= self._first_step))

    def steps(self, save_every: int = 200, *, multiple: int = 1) -> Iterator[int]:
        """The steps that are left, saving on the way: every so many, and after ten minutes at a multiple of some number."""
        options: dict[str, Any] = {"desc": self._title, "unit": "step", "smoothing": 0.05, "disable": not self._is_main}
        with tqdm(total=self._total_steps, initial=self._first_step, **options) as self._bar:
            self._started = self._clock() - self._seconds  # the time between a stop and its resumption does not count
            step, saved = self._first_step, time.monotonic()
            while self.share(step) < 1:
                yield step
                step += 1
                self._bar.update()
                is_due = step % multiple == 0 and time.monotonic() - saved > _SAVE_SECONDS
                if self._is_main and (step % save_every == 0 or is_due):
                    self._save(step)
                    saved = time.monotonic()
            if self._is_main and step % save_every:
                self._save(step)

    def share(self, step: int) -> float:
        """How much of the run is done before a step."""
        return (self._clock() - self._started) / self._limit if self._limit else step / self._total_steps

    def report(self, step: int, values: dict[str, float], exact: dict[str, float] | None = None, *, every: int = 20) -> None:
        """Show and log figures: `values` smoothed over some twenty steps, `exact` as they are."""
        for name, value in values.items():
            self._recent[name] = value if name not in self._recent else 0.95 * self._recent[name] + 0.05 * value
        if self._is_main and (step + 1) % every == 0:
            figures = {name: round(value, 4) for name, value in (self._recent | (exact or {})).items()}
            self._bar.set_postfix(figures, refresh=False)
            record = {"step": step + 1, "seconds": round(self._clock() - self._started, 1), **figures}
            with self._log.open("a") as log:
                log.write(json.dumps(record) + "\n")

    def _save(self, step: int) -> None:
        new = self._state.with_suffix(".new")
        state = {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._average is not None:
            state["average"] = self._average.state_dict()
        seconds = self._clock() - self._started
        torch.save(state | {"step": step, "seconds": seconds, "extra": self.extra, "recent": self._recent}, new)
        new.replace(self._state)  # a run that is killed while it saves keeps the checkpoint before
        plot_curves(read_log(self._log), self._title, self._directory / "curves.png")


def seconds_trained(directory: Path) -> float:
    """How long the run in a directory took, without the time between a stop and its resumption."""
    return float(torch.load(directory / "state.pt", weights_only=True, map_location="cpu")["seconds"])


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
