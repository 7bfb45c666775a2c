"""`latentserve ask`."""

import json
import sys
from dataclasses import asdict, replace
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from reasoning_net.errors import StageError
from reasoning_net.options import Flat
from router.policy import Mode
from server.ask import AskError, Question
from server.ask import ask as send


def ask(
    question: Annotated[Question | None, Flat] = None,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object at the end instead.")] = False,
) -> None:
    question = question or Question()
    text = sys.stdin.read().strip() if question.text == "-" else question.text
    if not text:
        raise StageError("there is no question: give it as an argument or on standard input")
    console = Console(stderr=True, style="dim", highlight=False, soft_wrap=True)

    def show(reasoning: str, content: str) -> None:
        if not as_json:
            console.print(reasoning, end="", markup=False)
            print(content, end="", flush=True)

    try:
        reply = send(replace(question, text=text), show)
    except AskError as error:
        raise StageError(str(error)) from error
    if not reply.route and question.mode is not Mode.AUTO:
        print(f"latentserve: the server ignored --mode {question.mode}: it is no latentserve.", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(reply), ensure_ascii=False, indent=2))
        return
    print()
    if question.explain:
        console.print(reply.trace, markup=False)
    console.print(reply.summary, markup=False)
