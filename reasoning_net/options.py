"""What configurations tell the command line beside names, types, defaults and docstrings.

`latentserve` makes an option of every field of a configuration class: `num_latents: PositiveInt = 16` is `--num-latents`, its
docstring is the help, and what pydantic says of the type are its bounds.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token
from pydantic import Field

HOST, PORT = "127.0.0.1", 8000
LOCAL_SERVER = f"http://{HOST}:{PORT}"

Flat = Parameter(name="*")
"""A configuration within another one: its fields are options like the others."""
Questions = Parameter(name="*", group="Questions")
Optimiser = Parameter(name="*", group="Optimiser")
Internal = Parameter(parse=False)
"""A field that is no option."""

Share = Annotated[float, Field(ge=0, le=1)]
Model = Annotated[
    str, Parameter(help="The frozen base: checkpoint directory or Hugging Face id. Default: the demo's.", show_default=False)
]
LayoutFile = Annotated[Path | None, Parameter(help="Prompt layout as JSON, where it does not follow from the base.")]
ThinkingPrompt = Annotated[
    str | None, Parameter(help="What a chain in text starts with; a base without think tags has no mode explicit without one.")
]
Seed = Annotated[int, Parameter(help="Seed of the data and the weights.")]
Workers = Annotated[int, Field(ge=0), Parameter(help="Processes that draw batches for a GPU.")]
SERVER = Parameter(converter=lambda _, tokens: tokens[0].value.rstrip("/").removesuffix("/v1"))
"""A server's address. Clients of OpenAI's protocol are given `…/v1`, so that is understood, too."""
Url = Annotated[str, SERVER, Parameter(help="The server.")]
ApiKey = Annotated[str | None, Parameter(help="Where the server wants one.", env_var="OPENAI_API_KEY")]


def commas(kind: Callable[[str], Any]) -> Parameter:
    """An option that takes several values in one word: `--num-latents 64,128`."""

    def split(_: object, tokens: Iterable[Token]) -> tuple[Any, ...]:
        return tuple(kind(part) for token in tokens for part in token.value.split(",") if part)

    return Parameter(
        n_tokens=1, negative="", converter=split, metavar="A,B,…",
        show_default=lambda values: ",".join(map(str, values)) or "none",
    )  # fmt: skip
