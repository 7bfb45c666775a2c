"""vLLM's output parsers, made to ask the record.

vLLM builds the parser of a request before the engine has decided whether the output will start with a chain. After latents,
or after an empty think block, there is none: everything is the answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm.parser import ParserManager
from vllm.parser.abstract_parser import DelegatingParser, Parser

from server.observe.record import current


def _answer_only() -> bool:
    record = current.get()
    return record is not None and not record.thinks_in_text


def routed(parser: type[Parser]) -> type[Parser]:
    """`parser` for the requests that think in text; a parser without reasoning for the others."""
    if not issubclass(parser, DelegatingParser):
        raise ValueError(
            f"The parser {parser.__name__} reads reasoning and tools in one grammar, which cannot follow the route of a "
            "request. Choose another --reasoning-parser or --tool-call-parser."
        )

    class RoutedParser(parser):
        def is_reasoning_end(self, input_ids: list[int]) -> bool:
            return _answer_only() or super().is_reasoning_end(input_ids)

        def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
            return (None, model_output) if _answer_only() else super().extract_reasoning(model_output, request)

        def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
            return 0 if _answer_only() else super().count_reasoning_tokens(token_ids)

    return RoutedParser


@contextmanager
def routed_parsers() -> Iterator[None]:
    """Within this context vLLM's serving objects are built with routed parsers."""
    original = ParserManager.get_parser

    def get_parser(*args: Any, **kwargs: Any) -> type[Parser] | None:
        parser = original(*args, **kwargs)
        return routed(parser) if parser else None

    ParserManager.get_parser = get_parser
    try:
        yield
    finally:
        ParserManager.get_parser = original
