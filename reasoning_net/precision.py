"""Where, and in what, networks compute."""

from typing import Literal

import torch


def found_device() -> Literal["cpu", "cuda"]:
    """The one rule of serving and training where no device is named: the GPU that torch sees, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16; float32 on CPUs without matrix units (AMX): AVX-512 BF16 alone attends four times slower than float32."""
    slow = device.type == "cpu" and not torch.cpu._is_amx_tile_supported()
    return torch.float32 if slow else torch.bfloat16


def engine_dtype(device: torch.device) -> torch.dtype:
    """Of the offline stages' engine (`rollouts`), and of a base whose states are kept beside what it answers."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to `compute_dtype`; does nothing where that is float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype(device) is torch.bfloat16)
