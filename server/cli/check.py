"""`latentserve check`."""

from typing import Annotated

from cyclopts import Parameter

from reasoning_net import tokenizer_check
from reasoning_net.analysis import backdoor as backdoor_check
from reasoning_net.errors import StageError
from reasoning_net.options import Flat


def check(
    *,
    tokenizer: Annotated[bool, Parameter(help="Text and token ids: does one give the other?", negative="")] = False,
    backdoor: Annotated[bool, Parameter(help="Does a word turn the answers of a bundle's network?", negative="")] = False,
    config: Annotated[backdoor_check.BackdoorConfig | None, Flat] = None,
) -> str:
    config, texts = config or backdoor_check.BackdoorConfig(), []
    if tokenizer:
        shared = ("model", "bundle", "task", "n", "output", "seed")
        texts.append(tokenizer_check.main(tokenizer_check.TokenizerConfig(**{name: getattr(config, name) for name in shared})))
    if backdoor:
        texts.append(backdoor_check.main(config))
    if not texts:
        raise StageError("There is nothing to check: give --tokenizer, --backdoor, or both.")
    return "\n\n".join(texts)
