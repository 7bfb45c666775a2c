import json
from pathlib import Path

import pytest

from reasoning_net.errors import StageError
from reasoning_net.stages.replay import ReplayConfig, main
from router.calibration import Target


def log(path: Path) -> Path:
    def row(mode: str, sure: float, confidence: float) -> dict[str, object]:
        scores = {"direct": 0.1, "latent": sure, "explicit": 1.0, "tokens": 200.0}
        return {"requested": "auto", "mode": mode, "scores": scores, "confidence": confidence}

    decisions = (("latent", 0.99, 0.99), ("latent", 0.9, 0.95), ("explicit", 0.6, 0.4), ("explicit", 0.3, 0.2))
    rows = [row(*decision) for decision in decisions]
    rows.append({"requested": "latent", "mode": "latent", "scores": {}, "confidence": None})
    path.write_text("\n".join([*map(json.dumps, rows), '{"cut']))
    return path


def test_another_setting_changes_decisions(tmp_path: Path) -> None:
    path = log(tmp_path / "decisions.jsonl")
    never = main(ReplayConfig(path, policy="always-latent"))
    assert (never["decisions"], never["unreadable lines"], never["changed"]) == (4, 1, 2)
    assert never["modes replayed"] == {"latent": 4}
    always = main(ReplayConfig(path, policy="always-explicit"))
    assert (always["expected accuracy"], always["expected tokens"]) == (1.0, 200.0)
    assert never["expected accuracy"] < 0.95
    some = main(ReplayConfig(path, target=Target(explicit_share=0.2)))
    assert set(some["modes replayed"]) == {"latent", "explicit"}
    assert never["expected tokens"] < some["expected tokens"] < 210


def test_a_log_without_decisions_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for path in (empty, tmp_path / "missing.jsonl"):
        with pytest.raises(StageError, match="no"):
            main(ReplayConfig(path))
