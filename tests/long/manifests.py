"""deploy/kubernetes as rendered, against the schemas of Kubernetes's own kinds, unknown fields refused: `make manifests`."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.deploy.manifests import OVERLAYS, needs_kubectl, rendered

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
SCHEMAS = Path(__file__).resolve().parents[1] / "deploy" / "schemas"
VERSIONS = ("1.32", "1.34", "1.37")  # preStop's sleep is on by default from 1.30 on


@needs_kubectl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_fits(overlay: str, version: str) -> None:
    for manifest in rendered(overlay):
        if (own := SCHEMAS / f"{manifest['kind']}.json").exists():
            jsonschema.validate(manifest, json.loads(own.read_text()))
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
            print(overlay, version, manifest["kind"], manifest["metadata"]["name"])
