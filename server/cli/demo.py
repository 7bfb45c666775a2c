"""`latentserve demo …`."""

import itertools
from typing import Annotated

from cyclopts import Parameter
from pydantic import NonNegativeInt

from reasoning_net.demo import base
from reasoning_net.demo.questions import Split
from reasoning_net.demo.questions import questions as stream
from reasoning_net.options import Flat


def questions(
    *,
    n: Annotated[NonNegativeInt, Parameter(help="How many.")] = 10,
    seed: Annotated[int, Parameter(help="The same seed gives the same questions.")] = 0,
    split: Annotated[Split, Parameter(help="Of the questions.")] = "test",
) -> None:
    for question in itertools.islice(stream(seed, split), n):
        print(question.public_json())


def train_base(*, config: Annotated[base.BaseConfig, Flat]) -> None:
    base.main(config)
