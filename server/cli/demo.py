"""`latentserve demo …`."""

import itertools
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import NonNegativeInt

from reasoning_net.demo import base, coconut_report
from reasoning_net.demo.coconut import CoconutConfig
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


def smollm2(*, output: Annotated[Path, Parameter(help="Directory of the checkpoint.")]) -> None:
    from reasoning_net.demo.smollm2 import main  # transformers' whole zoo

    main(output)


def train_base(
    *,
    config: Annotated[base.BaseConfig, Flat],
    study: Annotated[CoconutConfig, Parameter(name="*", group="Coconut")] = CoconutConfig(),  # noqa: B008
) -> str | None:
    if study.coconut:
        return coconut_report.main(config, study)
    base.main(config)
    return None
