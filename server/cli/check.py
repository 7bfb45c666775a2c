"""`latentserve check`."""

from typing import Annotated

from cyclopts import Parameter

from reasoning_net import tokenizer_check
from reasoning_net.errors import StageError
from reasoning_net.options import Flat


def check(
    *,
    tokenizer: Annotated[bool, Parameter(help="Text and token ids: does one give the other?", negative="")] = False,
    config: Annotated[tokenizer_check.TokenizerConfig | None, Flat] = None,
) -> str:
    if not tokenizer:
        raise StageError("There is nothing to check: give --tokenizer.")
    return tokenizer_check.main(config or tokenizer_check.TokenizerConfig())
