"""Who learns what happened to a request that has ended: metrics, the decision log, the request log."""

import logging
from dataclasses import dataclass
from typing import Any

from server.observe.decision_log import DecisionLog
from server.observe.metrics import Metrics
from server.observe.record import Record

logger = logging.getLogger("vllm.latentserve.requests")


@dataclass(frozen=True, slots=True)
class Observers:
    metrics: Metrics
    decisions: DecisionLog | None = None
    log_requests: bool = False
    trace: bool = False
    """Whether requests have spans."""

    def write_down(self, record: Record, key: str | None, messages: Any) -> None:
        """`key`: of the client, if it has one; `messages`: the conversation, as it came."""
        if record.failure:
            self.metrics.failed(record.ask.mode, record.failure)
        else:
            self.metrics.answered(record, key)
        if record.ask.is_plain:
            return
        if self.decisions:
            self.decisions.write(record, messages)
        if self.log_requests:
            logger.info("request", extra=record.line())
