"""Stages in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reasoning_net.errors import StageError
from reasoning_net.process import apart


def double(number: int) -> int:
    if number < 0:
        raise StageError("Give a number that is not negative.")
    return 2 * number


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)


def test_results_and_errors_come_back() -> None:
    assert apart("doubling", double, 4) == 8
    with pytest.raises(StageError, match="not negative"):
        apart("doubling", double, -1)
    with pytest.raises(StageError, match="The process of dying was killed"):
        apart("dying", die)


def test_a_stage_ends_with_its_command(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = (
        "from pathlib import Path; from reasoning_net.process import apart; from tests.reasoning_net.test_process import wait\n"
        f"if __name__ == '__main__': apart('waiting', wait, Path({str(path)!r}))"
    )
    script = tmp_path / "command.py"
    script.write_text(code)
    command = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": os.getcwd()})
    while not (path.exists() and path.read_text()):
        assert command.poll() is None
        time.sleep(0.05)
    command.kill()
    command.wait()
    stage = int(path.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{stage}").exists() and Path(f"/proc/{stage}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the stage outlived its command"
        time.sleep(0.05)
