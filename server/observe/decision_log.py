"""One JSON line a routed request, rotated by size: what `latentserve router replay` reads."""

import json
import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from server.route import Route


class DecisionLog:
    """Question text is written only where the operator asked for it."""

    def __init__(self, path: Path, max_mib: int, log_questions: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log_questions = log_questions
        self._handler = RotatingFileHandler(path, maxBytes=max_mib * 2**20, backupCount=4, encoding="utf-8")

    def write(self, route: Route, messages: Any) -> None:
        """`messages`: the request's conversation, as it came."""
        if route.decision is None:
            return
        line = {"time": round(time.time(), 3), **route.record()}
        if self._log_questions:
            line["messages"] = messages
        record = logging.LogRecord("decisions", logging.INFO, "", 0, json.dumps(line, ensure_ascii=False), None, None)
        self._handler.emit(record)

    def close(self) -> None:
        self._handler.close()
