"""The manifests of deploy/kubernetes, as written and as `kubectl kustomize` renders them."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS = (".", "gpu", "monitoring", "autoscaling")
Manifest = dict[str, Any]
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl, whose `kustomize` wants no cluster")


def read(*paths: str) -> list[Manifest]:
    return [one for path in paths for one in yaml.safe_load_all((KUBERNETES / path).read_text())]


def rendered(overlay: str) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]
