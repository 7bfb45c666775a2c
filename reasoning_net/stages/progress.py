"""Stages one after the other, each in a process of its own: which are done, what they came to, and how much time is left."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reasoning_net.process import apart
from reasoning_net.training import duration


class Progress:
    """Stages one after the other; what they came to is kept, and which is running is said, with the time that is left."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._left: dict[str, float] = {}

    def expect(self, seconds: dict[str, float]) -> None:
        """The stages that are to come, and what each will take."""
        self._left = {name: value for name, value in seconds.items() if not self._done(name).is_file()}

    def stage(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returned in its own process: now, or in an earlier run."""
        if (done := self._done(name)).is_file():
            return json.loads(done.read_text())["result"]
        if name in self._left:
            number, left = len(self._left), sum(self._left.values())
            say(f"{name}: {number} stage{'s' * (number > 1)} to go, about {duration(left)} left of all")
        started = time.monotonic()
        result = apart(name, function, *arguments)
        self._left.pop(name, None)
        done.parent.mkdir(parents=True, exist_ok=True)
        write(done, {"result": result, "seconds": round(time.monotonic() - started, 1)})
        return json.loads(done.read_text())["result"]

    def _done(self, name: str) -> Path:
        return self._output / "done" / f"{name}.json"


def say(*sentences: str) -> None:
    for sentence in sentences:
        tqdm.write(f"adapt: {sentence}", file=sys.stderr)


def write(path: Path, value: object) -> None:
    """All of it, or nothing."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    new.replace(path)
