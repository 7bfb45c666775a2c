import json
import math
from pathlib import Path

import pytest

from router.policies.always import Always
from router.policy import Decision, Mode, Scores
from server.engine.errors import ConfigurationError
from server.observe.decision_log import DecisionLog
from server.observe.record import Ask, Record


def routed() -> Record:
    record = Record(Ask("auto"), policy=Always(Mode.LATENT), confidence=0.5, request_id="chatcmpl-1")
    record.decision, record.scores = Decision(Mode.LATENT, 0.9, 0.8, "worth_it"), Scores(latent=0.9, tokens=math.inf)
    record.ended = record.started + 0.5
    return record


def test_question_text_is_off_by_default(tmp_path: Path) -> None:
    path = tmp_path / "new" / "decisions.jsonl"
    for log_questions in (False, True):
        log = DecisionLog(path, 1, log_questions, lambda: None)
        log.write(routed(), [{"role": "user", "content": "secret"}])
        log.write(Record(Ask("auto")), [])  # failed before it was decided
        log.close()
    without, with_text = map(json.loads, path.read_text().splitlines())
    assert "messages" not in without
    assert without["scores"] == {"latent": 0.9, "tokens": None}
    assert (without["mode"], without["policy"], without["seconds"]) == ("latent", "always-latent", 0.5)
    assert (without["request_id"], without["failure"]) == ("chatcmpl-1", None)
    assert with_text["messages"][0]["content"] == "secret"


def test_the_log_is_bounded(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl", 1, log_questions=True, lost=lambda: None)
    for _ in range(80):
        log.write(routed(), "x" * 2**17)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert all(file.stat().st_size <= 2**20 for file in files)


def test_a_full_disk_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    lost = []
    log = DecisionLog(Path("/dev/full"), 1, log_questions=False, lost=lambda: lost.append(1))
    for _ in range(20):
        log.write(routed(), [])
    assert len(lost) == 20
    assert len([r for r in caplog.records if "cannot be written" in r.message]) <= 1


def test_a_log_that_can_never_be_written_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--decision-log"):
        DecisionLog(tmp_path / "file" / "decisions.jsonl", 1, log_questions=False, lost=lambda: None)
