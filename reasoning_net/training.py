"""What every training stage shares: optimisers, schedule, progress, log, and a checkpoint to resume from."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Muon for matrices inside the network, AdamW for embeddings, norms and everything else."""

    muon_lr: float = 0.02
    adamw_lr: float = 0.003
    weight_decay: float = 0.01
    warmup_steps: int = 60
    anneal_share: float = 0.5
    """The last share of the steps over which the learning rate falls linearly to 1 % of its peak."""
    max_grad_norm: float = 1.0


class Optimizer:
    """Muon and AdamW behind one `step`, with warm-up, a plateau and a linear decay to (almost) zero."""

    def __init__(self, module: nn.Module, config: OptimizerConfig, total_steps: int) -> None:
        self._config, self._total_steps = config, total_steps
        self._params = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for n, p in module.named_parameters() if p.requires_grad and p.ndim == 2 and _is_hidden_matrix(n)]
        ids = {id(p) for p in matrices}
        rest = [p for p in self._params if id(p) not in ids]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="original"),
            torch.optim.AdamW(rest, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._peaks = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self, loss: Tensor, step: int) -> float:
        """Backward, clip, update; the gradient's norm before clipping. A step whose gradient is not finite is skipped."""
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._params, self._config.max_grad_norm))
        scale = learning_rate_scale(step, self._total_steps, self._config)
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * scale
        for optimizer in self._optimizers:
            if math.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _is_hidden_matrix(name: str) -> bool:
    return not any(part in name for part in ("embed", "lm_head", "queries", "positions"))


def learning_rate_scale(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The share of the peak learning rate at `step` (0-based)."""
    warmup = (step + 1) / config.warmup_steps
    anneal = (total_steps - step) / max(1.0, total_steps * config.anneal_share)
    return max(0.01, min(1.0, warmup, anneal))


class Run:
    """A resumable run in a directory: `state.pt` (ours alone, never shipped), `log.jsonl`, a progress bar.

    The random streams of a run are functions of (seed, step), so a resumed run continues as if it had not stopped.
    """

    def __init__(self, directory: Path, module: nn.Module, optimizer: Optimizer, total_steps: int, title: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._state, self._module, self._optimizer = directory / "state.pt", module, optimizer
        self._total_steps, self._title = total_steps, title
        self._log = (directory / "log.jsonl").open("a")
        self.extra: dict[str, Any] = {}
        """What a stage must find again when it resumes (a curriculum's level, say)."""
        self._first_step = 0
        if self._state.exists():
            state = torch.load(self._state, weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            self._first_step, self.extra = state["step"], state["extra"]

    def steps(self, save_every: int = 200) -> Iterator[int]:
        """The steps that are left, saving on the way."""
        with tqdm(
            total=self._total_steps, initial=self._first_step, desc=self._title, unit="step", smoothing=0.05
        ) as self._bar:
            self._recent: dict[str, float] = {}
            self._started = time.monotonic()
            for step in range(self._first_step, self._total_steps):
                yield step
                self._bar.update()
                if (step + 1) % save_every == 0 or step + 1 == self._total_steps:
                    self._save(step + 1)
        self._log.close()

    def report(self, step: int, values: dict[str, float], every: int = 20) -> None:
        """Show and log smoothed figures."""
        for name, value in values.items():
            self._recent[name] = value if name not in self._recent else 0.95 * self._recent[name] + 0.05 * value
        if (step + 1) % every == 0:
            figures = {name: round(value, 4) for name, value in self._recent.items()}
            self._bar.set_postfix(figures, refresh=False)
            self.log({"step": step + 1, "seconds": round(time.monotonic() - self._started, 1), **figures})

    def log(self, record: dict[str, Any]) -> None:
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()

    def _save(self, step: int) -> None:
        new = self._state.with_suffix(".new")
        state = {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state | {"step": step, "extra": self.extra}, new)
        new.replace(self._state)
