"""What this machine has."""

import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from server.doctor import Finding, Level, ok

GIB = 2**30
_OPEN_FILES, _SHARED_MIB = 4096, 512
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    total_gib: float
    free_gib: float
    capability: tuple[int, int]
    driver: str

    def __str__(self) -> str:
        major, minor = self.capability
        return (
            f"{self.name}, {self.free_gib:.1f} of {self.total_gib:.1f} GiB free, compute capability {major}.{minor}, "
            f"driver {self.driver}"
        )


def gpus() -> list[Gpu]:
    """NVIDIA's, as their driver sees them: whatever torch was built for."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    query = "name,memory.total,memory.free,compute_cap,driver_version"
    try:
        command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in listed.splitlines() if (gpu := _gpu(line))]


def _gpu(line: str) -> Gpu | None:
    try:
        name, total, free, capability, driver = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        return Gpu(name, float(total) / 1024, float(free) / 1024, (int(major), int(minor)), driver)
    except ValueError:  # "[N/A]"
        return None


def free_gib() -> float:
    """Memory that is free, in a container what is left of its share."""
    free = psutil.virtual_memory().available / GIB
    try:
        limit, used = (int(path.read_text()) for path in (_CONTAINER, _CONTAINER.with_name("memory.current")))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, (limit - used) / GIB)


def examine(device: str, found: list[Gpu]) -> Iterator[Finding]:
    """`device`: which a server will run on."""
    yield _python()
    yield from _tools(device)
    yield _processor(device)
    yield ok("memory", f"{free_gib():.1f} GiB free of {psutil.virtual_memory().total / GIB:.1f}")
    for number, gpu in enumerate(found):
        yield _fits(number, gpu)
    yield from _limits()


def _python() -> Finding:
    version, text = sys.version_info[:2], f"{platform.python_version()} in {sys.prefix}"
    if not (3, 11) <= version < (3, 14):
        mend = "apt install python3.11 python3.11-venv && make serve PYTHON=python3.11"
        return Finding("error", "Python", f"{text}: 3.11 to 3.13 are supported", mend)
    return ok("Python", text if version == (3, 11) else f"{text} (3.11 is what was tested)")


def _tools(device: str) -> Iterator[Finding]:
    found = shutil.which("g++")
    yield (
        ok("g++", found)
        if found
        else Finding("error", "g++", "not found: vLLM compiles kernels for this machine", "apt install g++")
    )
    try:
        ctypes.CDLL("libnuma.so.1")
        yield ok("libnuma", "libnuma.so.1")
    except OSError:
        level: Level = "error" if device == "cpu" else "ok"
        yield Finding(level, "libnuma", "not found: vLLM's CPU build links it", "apt install libnuma1")
    if not shutil.which("make"):
        yield Finding("warning", "make", "not found: it is for checkouts (make serve, make test)", "apt install make")


def _processor(device: str) -> Finding:
    machine, cores = platform.machine(), len(os.sched_getaffinity(0))
    text = f"{machine}, {cores} of {psutil.cpu_count() or cores} cores"
    if machine != "x86_64":
        return Finding("warning", "processor", f"{text}: x86-64 is what was tested")
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if name in _flags()]
    text += f", {', '.join(sets) or 'no AVX'}"
    if "avx2" not in sets and device == "cpu":
        return Finding("error", "processor", f"{text}: vLLM's CPU build needs AVX2", "a processor of 2013 or later, or a GPU")
    has_units = device != "cpu" or "amx_tile" in sets
    return ok("processor", text if has_units else f"{text} (without AMX, so networks compute in float32)")


def _flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _fits(number: int, gpu: Gpu) -> Finding:
    subject = f"GPU {number}"
    if gpu.capability < (7, 5):
        return Finding("error", subject, f"{gpu}: vLLM needs 7.5 or later", "make serve DEVICE=cpu")
    if gpu.capability < (8, 0):
        return Finding("warning", subject, f"{gpu}: it has no bf16", "make serve DEVICE=cuda FLAGS='--dtype float16'")
    return ok(subject, str(gpu))


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} open files" if soft != resource.RLIM_INFINITY else "open files without limit"
    is_low = soft != resource.RLIM_INFINITY and soft < _OPEN_FILES
    yield (
        Finding("warning", "ulimit", f"{text}: each connection takes one", f"ulimit -n {min(65535, hard)}")
        if is_low
        else ok("ulimit", text)
    )
    shared = Path("/dev/shm")  # noqa: S108
    mib = shutil.disk_usage(shared).total // 2**20 if shared.is_dir() else 0
    yield (
        ok(shared.as_posix(), f"{mib:,} MiB")
        if mib >= _SHARED_MIB
        else Finding(
            "warning", shared.as_posix(), f"{mib:,} MiB: workers on several GPUs share it", "docker run --shm-size 1g …"
        )
    )
