"""A LoRA adapter on the attention of a frozen base: what may change how it thinks without changing the base.

Saved in PEFT's format, which vLLM serves: `latentserve serve --enable-lora --lora-modules NAME:brief=DIRECTORY`.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.modeling_utils import PreTrainedModel

from reasoning_net.errors import StageError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class LowRank(nn.Module):
    """W + α/r · B A; nothing at first, since B is zero."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1], device=weight.device) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self._scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self._scale * self.b @ self.a).to(weight.dtype)


class Adapter(nn.Module):
    """The low-rank parts of a model's attention projections, by name; they take effect in the model that it was made for."""

    def __init__(self, model: PreTrainedModel, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        found = {name: part for name, part in model.named_modules() if name.rpartition(".")[2] in TARGETS}
        if not found:
            raise StageError(f"The base has no {', '.join(TARGETS)}: an adapter has nothing to hold on to.")
        self._parts = {name: LowRank(part.weight, rank, alpha) for name, part in found.items()}
        self.parts = nn.ModuleList(self._parts.values())  # whose parameters are the adapter's
        for name, part in found.items():
            parametrize.register_parametrization(part, "weight", self._parts[name])

    def save(self, directory: Path, base: str) -> None:
        """As PEFT does."""
        weights = {}
        for name, part in self._parts.items():
            weights[f"base_model.model.{name}.lora_A.weight"] = part.a.detach().cpu().contiguous()
            weights[f"base_model.model.{name}.lora_B.weight"] = part.b.detach().cpu().contiguous()
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": self.rank,
            "lora_alpha": self.alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": list(TARGETS),
            "inference_mode": True,
        }  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        save_file(weights, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))

    def load(self, directory: Path) -> None:
        weights = load_file(directory / "adapter_model.safetensors")
        with torch.no_grad():
            for name, part in self._parts.items():
                part.a.copy_(weights[f"base_model.model.{name}.lora_A.weight"])
                part.b.copy_(weights[f"base_model.model.{name}.lora_B.weight"])
