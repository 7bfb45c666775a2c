"""The dashboards are those of their script, and Prometheus takes our files; what they show: `tests/long/dashboards.py`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
RULES = DEPLOY / "prometheus" / "alerts.yml"
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus (apt-get install prometheus)")


def test_the_dashboards_are_those_of_the_script(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DEPLOY / "grafana" / "generate.py"), str(tmp_path)], check=True)
    for path in sorted(tmp_path.iterdir()):
        assert (DASHBOARDS / path.name).read_text() == path.read_text(), f"{path.name} is stale: run deploy/grafana/generate.py"
    assert {path.stem for path in tmp_path.iterdir()} == {"overview", "modes", "router", "engine", "replicas"}


@needs_prometheus
def test_configuration_and_rules_are_valid() -> None:
    for kind, path in (("config", DEPLOY / "prometheus" / "prometheus.yml"), ("rules", RULES)):
        checked = subprocess.run(["promtool", "check", kind, str(path)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
def test_alerts_of_several_replicas() -> None:
    tested = subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
