"""The console at `/`: one page, no build step, nothing from elsewhere."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

from reasoning_net.demo.questions import FAMILIES, SEEN, questions

_FILES = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_GENERAL = (
    ("easy", "What is 17 + 25?"),
    ("easy", "A book costs 12 euros and a pen 3. How much do two books and a pen cost?"),
    ("hard", "How many positive divisors does 360 have, and what is their sum?"),
    ("hard", "Find all integers n for which n² + 19n + 92 is a perfect square."),
)


class Example(BaseModel):
    """A question that is one click away."""

    label: str
    question: str


class Setup(BaseModel):
    """What the page has to know of its server."""

    modes: list[str]
    explains: bool
    """Whether it can say what latents say."""
    examples: list[Example]


def mount(app: FastAPI, modes: list[str], *, is_demo: bool, explains: bool) -> None:
    in_order = [mode for mode in ("direct", "latent", "latent+explicit", "explicit", "soft", "auto") if mode in modes]
    setup = Setup(modes=in_order, explains=explains, examples=_demo_examples() if is_demo else _general_examples())

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_FILES / "index.html", headers=_HEADERS)

    @app.get("/console/setup", include_in_schema=False)
    async def describe() -> Setup:
        return setup

    app.mount("/console", StaticFiles(directory=_FILES))


def _general_examples() -> list[Example]:
    return [Example(label=f"{kind} {i}", question=question) for i, (kind, question) in enumerate(_GENERAL, 1)]


def _demo_examples() -> list[Example]:
    """Held-out questions of the demo, two each of few steps, of many, and of a family that the network was not trained on."""

    def fitting(kind: str, steps: tuple[int, ...], families: tuple[str, ...]) -> Iterator[Example]:
        for found in itertools.islice((q for q in questions(5, "test", families=families) if q.steps in steps), 2):
            yield Example(label=f"{kind}: {found.steps} steps, {found.family}", question=found.question)

    unseen = tuple(family for family in FAMILIES if family not in SEEN)
    return [*fitting("easy", (1, 2), SEEN), *fitting("hard", (7, 8), SEEN), *fitting("unseen", (4, 5, 6), unseen)]
