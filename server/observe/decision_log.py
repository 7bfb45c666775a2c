"""One JSON line a routed request, rotated by size: what `latentserve router replay` reads."""

import json
import logging
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from server.engine.errors import ConfigurationError
from server.observe.record import Record

logger = logging.getLogger("vllm.latentserve.decisions")


class DecisionLog:
    """Question text is written only where the operator asked for it. A disk that is full, or read-only, stops no request."""

    def __init__(self, path: Path, max_mib: int, log_questions: bool, lost: Callable[[], None]) -> None:
        """`lost` is called for each line that could not be written. Raises `ConfigurationError` where none can be."""
        self._log_questions = log_questions
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _Handler(path, max_mib, lost)
        except OSError as error:
            raise ConfigurationError(f"--decision-log {path} cannot be written: {error.strerror}.") from error

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


class _Handler(RotatingFileHandler):
    """Says once that lines are lost, and once that they are written again."""

    def __init__(self, path: Path, max_mib: int, lost: Callable[[], None]) -> None:
        super().__init__(path, maxBytes=max_mib * 2**20, backupCount=4, encoding="utf-8")
        self._lost, self._fails, self._failed = lost, False, False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if self._fails and not self._failed:
            self._fails = False
            logger.warning("The decision log %s is written again.", self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        self._failed = True
        self._lost()
        if not self._fails:
            self._fails = True
            logger.warning("The decision log %s cannot be written: lines are lost.", self.baseFilename, exc_info=True)
