"""`latentserve top`."""

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field
from rich.console import Console
from rich.live import Live

from reasoning_net.options import LOCAL_SERVER, ApiKey, Url
from server.top import watch


def top(
    *,
    url: Url = LOCAL_SERVER,
    api_key: ApiKey = None,
    interval: Annotated[float, Field(ge=0.2), Parameter(help="Seconds between two looks.")] = 2.0,
    window: Annotated[float, Field(ge=1), Parameter(help="Seconds that the figures are of.")] = 15.0,
    once: Annotated[bool, Parameter(help="Print the table once, after one interval.")] = False,
) -> None:
    console = Console()
    views = watch(url, interval, window, api_key)
    if once:
        console.print(next(views))
        return
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            for view in views:
                live.update(view, refresh=True)
    except KeyboardInterrupt:
        return
