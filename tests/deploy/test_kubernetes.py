"""The manifests say what the product can do, and fit what they are for; Kubernetes's own schemas: `make manifests`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.http.routes import PUBLIC
from server.settings import OUR_FLAGS, Settings
from tests.deploy.manifests import KUBERNETES, OVERLAYS, needs_kubectl, of_kind, read, rendered

ROOT = KUBERNETES.parents[1]
SCHEMAS = Path(__file__).parent / "schemas"
DEPLOYMENT = read("base/deployment.yaml")[0]
POD = DEPLOYMENT["spec"]["template"]["spec"]
SERVER = POD["containers"][0]
SERVICES = {one["metadata"]["name"]: one for one in read("base/services.yaml")}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
SHUTDOWN_SECONDS = 10  # after a drain: the last words, the connections', and the engine's end


def settings_of(kustomization: str) -> dict[str, str]:
    return dict(line.split("=", 1) for made in read(kustomization)[0]["configMapGenerator"] for line in made["literals"])


BASE = settings_of("base/kustomization.yaml")
GPU = BASE | settings_of("gpu/kustomization.yaml")


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("variables", [BASE, GPU], ids=["base", "gpu"])
def test_what_a_pod_is_told_are_settings(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = dict(flag.split("=", 1) for flag in SERVER["args"])
    assert flags.keys() <= OUR_FLAGS
    ours = {name: value for name, value in variables.items() if name.startswith("LATENTSERVE_")}
    assert {f"--{name.removeprefix('LATENTSERVE_').lower().replace('_', '-')}" for name in ours} <= OUR_FLAGS
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.device == ("cuda" if variables is GPU else "auto")
    assert settings.drain_seconds >= settings.timeout_seconds, "who was let in has that long"
    prestop = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= prestop + settings.drain_seconds + SHUTDOWN_SECONDS
    readiness = SERVER["readinessProbe"]
    assert prestop >= readiness["periodSeconds"], "balancers that ask /ready themselves"
    if variables is BASE:
        assert variables["OMP_NUM_THREADS"] == SERVER["resources"]["limits"]["cpu"]


def test_a_service_of_our_name_does_not_become_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives each container the addresses of a namespace's Services as variables."""
    monkeypatch.setenv("LATENTSERVE_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ValueError, match="port"):
        Settings()
    assert POD["enableServiceLinks"] is False


def test_probes_and_ports_are_the_servers() -> None:
    named = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
    assert f"--port={named['http']}" in SERVER["args"]
    for probe in PROBES:
        asked = SERVER[probe]["httpGet"]
        assert asked["path"] in PUBLIC, "answered without a key"
        assert asked["port"] in named
    assert SERVER["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert "/ready" not in {SERVER[probe]["httpGet"]["path"] for probe in PROBES if probe != "readinessProbe"}, (
        "it says 503 while the server drains, or a bundle does not fit: nothing that a restart would mend"
    )
    for service in SERVICES.values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named.keys()
    (policy,) = read("base/network-policy.yaml")
    assert policy["spec"]["ingress"] == [{"ports": [{"port": "http"}]}]


def test_the_pod_may_do_what_the_container_of_compose_may() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["server"]
    assert compose["read_only"] is SERVER["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"] for mount in SERVER["volumeMounts"]}
    assert mounts == {path.partition(":")[0] for path in compose["tmpfs"]} | {"/dev/shm"}
    assert {mount["name"] for mount in SERVER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    user = re.search(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user
    assert int(user[1]) == POD["securityContext"]["runAsUser"]


def test_all_selectors_select_the_servers_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    selectors += [service["spec"]["selector"] for service in SERVICES.values()]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in read("base/disruption.yaml")]
    policies = read("base/network-policy.yaml", "gpu/network-policy.yaml")
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in policies]
    router = yaml.safe_load((KUBERNETES / "production-stack-values.yaml").read_text())["routerSpec"]["extraArgs"]
    told = dict(zip(router[::2], router[1::2], strict=True))
    selectors.append(dict(pair.split("=") for pair in told["--k8s-label-selector"].split(",")))
    assert all(selects(selector, labels) for selector in selectors)
    assert int(told["--k8s-port"]) == SERVER["ports"][0]["containerPort"]
    (scaled,) = read("autoscaling/scaled-object.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT["spec"], "applying it again would undo what KEDA has scaled"


def test_each_pod_is_scraped_once_as_the_job_of_the_alerts() -> None:
    (monitor,) = read("monitoring/service-monitor.yaml")
    selected = [
        name for name, one in SERVICES.items() if selects(monitor["spec"]["selector"]["matchLabels"], one["metadata"]["labels"])
    ]
    assert len(selected) == 1
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["path"] in PUBLIC
    assert endpoint["port"] in {port["name"] for port in SERVICES[selected[0]]["spec"]["ports"]}
    text = "".join(path.read_text() for path in KUBERNETES.rglob("*.yaml"))
    assert set(re.findall(r'\bjob="([^"]+)"', text)) == set(selected)


def test_metrics_that_are_named_are_there() -> None:
    source = "".join(path.read_text() for path in (ROOT / "server" / "observe").glob("*.py"))
    ours = set(re.findall(r'"(latentserve_\w+)"', source))
    text = "".join(path.read_text() for path in KUBERNETES.rglob("*.yaml"))
    named = set(re.findall(r"\blatentserve_[a-z_]+", text))
    assert named
    assert {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in named} <= ours


def test_the_rule_is_that_of_the_script(tmp_path: Path) -> None:
    written = tmp_path / "rule.yaml"
    subprocess.run([sys.executable, str(KUBERNETES / "generate.py"), str(written)], check=True)
    assert (KUBERNETES / "monitoring" / "prometheus-rule.yaml").read_text() == written.read_text(), (
        "run deploy/kubernetes/generate.py"
    )


@pytest.mark.parametrize(
    "path", ["autoscaling/scaled-object.yaml", "monitoring/service-monitor.yaml", "monitoring/prometheus-rule.yaml"]
)
def test_custom_resources_fit_their_definitions(path: str) -> None:
    (manifest,) = read(path)
    jsonschema.validate(manifest, json.loads((SCHEMAS / f"{manifest['kind']}.json").read_text()))


def test_the_values_are_of_the_production_stack() -> None:
    """The chart's schema has no word against keys that it does not know: they would be ignored."""
    values = yaml.safe_load((KUBERNETES / "production-stack-values.yaml").read_text())
    schema = json.loads((SCHEMAS / "production-stack-values.json").read_text())
    jsonschema.validate(values, schema)
    assert not list(unknown(values, schema))


def unknown(value: Any, schema: dict[str, Any], at: str = "") -> Iterator[str]:
    known = schema.get("properties", {})
    if isinstance(value, dict) and known:
        for name, inner in value.items():
            if name in known:
                yield from unknown(inner, known[name], f"{at}.{name}")
            else:
                yield f"{at}.{name}"


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_renders(overlay: str) -> None:
    manifests = rendered(overlay)
    assert {one["metadata"].get("namespace", "latentserve") for one in manifests} == {"latentserve"}
    for deployment in of_kind("Deployment", manifests):
        pod = deployment["spec"]["template"]["spec"]
        (server,) = pod["containers"]
        maps = {one["metadata"]["name"]: one["data"] for one in of_kind("ConfigMap", manifests)}
        variables = maps[server["envFrom"][0]["configMapRef"]["name"]]
        assert variables == (GPU if overlay == "gpu" else BASE)
        assert server["resources"]["limits"].get("nvidia.com/gpu") == (1 if overlay == "gpu" else None)
        assert server["image"].endswith("-cuda" if overlay == "gpu" else "-cpu")
        claims = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim", manifests)}
        assert claims == {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    if overlay == "monitoring":
        boards = of_kind("ConfigMap", manifests)
        assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in boards)
        shown = {name: text for one in boards for name, text in one["data"].items()}
        assert shown == {path.name: path.read_text() for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")}
