"""`latentserve bench`."""

from typing import Annotated

from reasoning_net.errors import StageError
from reasoning_net.options import Flat
from server.bench.run import BenchConfig, main


def bench(*, config: Annotated[BenchConfig | None, Flat] = None) -> None:
    tables, problem = main(config or BenchConfig())
    if tables:
        print(tables)
    if problem:
        raise StageError(problem)
