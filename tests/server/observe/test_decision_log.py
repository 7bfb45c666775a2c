import json
import math
from pathlib import Path

from router.policies.always import Always
from router.policy import Decision, Mode, Scores
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
        log = DecisionLog(path, 1, log_questions)
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
    log = DecisionLog(tmp_path / "decisions.jsonl", 1, log_questions=True)
    for _ in range(80):
        log.write(routed(), "x" * 2**17)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert all(file.stat().st_size <= 2**20 for file in files)
