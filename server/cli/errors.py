"""What can go wrong in any command, in the words of whoever can mend it."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError
from pydantic import ValidationError

from reasoning_net.errors import BundleError, StageError, sentence, unreachable
from router.policy import RouterError
from server.engine.errors import ConfigurationError, EngineDiedError

_NOT_ENOUGH = 2**20  # bytes free on a disk


def usage_error(error: CycloptsError) -> str:
    """Of a command line that cannot be understood."""
    argument, cause = error.argument, error.__cause__
    is_flat = argument is not None and argument.name == "*"  # a whole configuration: its fields are named in the cause
    if argument and isinstance(cause, ValidationError):
        return sentence(cause, _option if is_flat else lambda _: argument.name) + "."
    if argument and isinstance(error, MissingArgumentError) and is_flat:
        return f"give one of {', '.join(child.name for child in argument.children)}."
    return " ".join(str(error).split())


def _option(field: str) -> str:
    """The option of a field, and the variable that it may have come from."""
    variable = f"LATENTSERVE_{field.upper()}"
    return f"--{field.replace('_', '-')}" + (f" (or {variable})" if variable in os.environ else "") if field else ""


def explain(error: Exception, arguments: Mapping[str, Any]) -> str | None:
    """Of a command that failed with these arguments. None for a bug: its traceback is wanted."""
    if isinstance(error, StageError | BundleError | RouterError | ConfigurationError | EngineDiedError):
        return " ".join(str(error).split())
    if isinstance(error, ValidationError):
        return sentence(error, _option) + "."
    import httpx

    if isinstance(error, httpx.HTTPError):
        return unreachable(_given(arguments, "url") or "the server", str(error) or type(error).__name__)
    # torch, safetensors and the standard library each say it in their own way.
    output = _given(arguments, "output") or _given(arguments, "bundle")
    if isinstance(output, Path) and output.exists() and shutil.disk_usage(output).free < _NOT_ENOUGH:
        return f"the disk of {output} is full. Free some space and run the same command: it resumes from its last checkpoint."
    return None


def _given(arguments: Mapping[str, Any], name: str) -> Any:
    """An argument of a command, or a field of its configuration."""
    return next((found for one in arguments.values() if (found := getattr(one, name, None))), arguments.get(name))
