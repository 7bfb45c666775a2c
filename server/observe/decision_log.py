"""One JSON line a routed request, rotated by size: what `latentserve router replay` reads."""

import json
import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from server.observe.record import Record


class DecisionLog:
    """Question text is written only where the operator asked for it."""

    def __init__(self, path: Path, max_mib: int, log_questions: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log_questions = log_questions
        self._handler = RotatingFileHandler(path, maxBytes=max_mib * 2**20, backupCount=4, encoding="utf-8")

    def write(self, record: Record, messages: Any) -> None:
        """`messages`: the request's conversation, as it came."""
        if record.decision is None:
            return
        line = {"time": round(time.time(), 3), **record.line()}
        if self._log_questions:
            line["messages"] = messages
        entry = logging.LogRecord("decisions", logging.INFO, "", 0, json.dumps(line, ensure_ascii=False), None, None)
        self._handler.emit(entry)

    def close(self) -> None:
        self._handler.close()
