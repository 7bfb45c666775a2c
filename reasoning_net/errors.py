"""What goes wrong, as one sentence for whoever can mend it."""

from collections.abc import Callable

from pydantic import ValidationError


class StageError(RuntimeError):
    """A stage that cannot go on: its message says what was wrong and what to do."""


class BundleError(ValueError):
    """A bundle that cannot be used, with what differs and what to do."""


def unreachable(url: str, error: object) -> str:
    """Nobody answers there."""
    return f"cannot reach {url}: {error}. Is the server running? Start it with `latentserve serve`."


def sentence(error: ValidationError, name: Callable[[str], str] = str) -> str:
    """What pydantic found, in one line. `name` says what a field is called where its user sees it."""
    found = []
    for one in error.errors(include_url=False):
        what = one["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
        where = name(".".join(map(str, one["loc"])))
        is_plain = isinstance(one["input"], str | int | float) and one["type"] != "extra_forbidden"
        found.append(f"{where} {what}".strip() + (f", not {one['input']!r}" if where and is_plain else ""))
    return "; ".join(found)
