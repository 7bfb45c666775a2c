"""`latentserve serve`."""

from typing import Annotated

from cyclopts import Parameter

from reasoning_net.options import Flat
from server.launch import run
from server.settings import Settings


def serve(
    *vllm_flags: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    settings: Annotated[Settings | None, Flat] = None,
) -> None:
    run(settings or Settings(), vllm_flags)
