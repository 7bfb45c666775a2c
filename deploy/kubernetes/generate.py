"""Prometheus's alerts as its operator wants them: writes monitoring/prometheus-rule.yaml, or the file named.

python deploy/kubernetes/generate.py [FILE]
"""

import sys
from pathlib import Path

import yaml

_HERE = Path(__file__).parent
_HEADER = "# Written by deploy/kubernetes/generate.py from deploy/prometheus/alerts.yml.\n"


def main(output: Path) -> None:
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "latentserve", "labels": {"release": "kube-prometheus-stack"}},
        "spec": yaml.safe_load((_HERE.parent / "prometheus" / "alerts.yml").read_text()),
    }
    output.write_text(_HEADER + yaml.safe_dump(rule, sort_keys=False, width=120))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE / "monitoring" / "prometheus-rule.yaml")
