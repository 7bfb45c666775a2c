"""Commands run in this process."""

import contextlib
import io
from dataclasses import dataclass

from server.cli import main


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Ended:
    """`latentserve …`. An error that is no sentence is raised."""
    status = 0
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return Ended(status, stdout.getvalue(), stderr.getvalue())


def failure(*arguments: str, status: int = 1) -> str:
    """The one sentence that a command ends in."""
    ended = run(*arguments)
    assert ended.exit_code == status, ended
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("latentserve: ")
    return last
