"""What a sequence of tokens consists of: the question's sentences and words, a chain's lines, and where its numbers stand."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from reasoning_net.boundaries import Boundaries

_SENTENCE = re.compile(r"\S(?:[^.!?]|[.!?](?=\S))*[.!?]*")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text, and which positions of the sequence hold it."""

    text: str
    positions: range


class Segments:
    """Looks for pieces in sequences of a base's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._boundaries = tokenizer, Boundaries(tokenizer)

    def sentences(self, token_ids: Sequence[int], text: str) -> list[Segment]:
        """Of a text that X contains: the last place where it stands, or all of X where it stands nowhere."""
        rendered = str(self._tokenizer.decode(token_ids))
        start = rendered.rfind(text.strip())
        found = _SENTENCE.finditer(rendered, max(start, 0), start + len(text.strip()) if start >= 0 else len(rendered))
        return list(self._placed(token_ids, found))

    def words(self, token_ids: Sequence[int], sentence: Segment) -> list[Segment]:
        """Words of a sentence in a sequence."""
        ids = token_ids[sentence.positions.start : sentence.positions.stop]
        pieces = self._placed(ids, _WORD.finditer(str(self._tokenizer.decode(ids))))
        first = sentence.positions.start
        return [Segment(word.text, range(first + word.positions.start, first + word.positions.stop)) for word in pieces]

    def lines(self, thinking: Sequence[int], first: int) -> list[Segment]:
        """Of a chain that stands from position `first` on; what is blank between them belongs to none."""
        whole = len(self._boundaries.trimmed(thinking))
        ends = [*(end for end in self._boundaries.ends(thinking) if end < whole), whole]
        starts = [0, *ends[:-1]]
        texts = (str(self._tokenizer.decode(thinking[start:end])).strip() for start, end in zip(starts, ends, strict=True))
        spans = (range(first + start, first + end) for start, end in zip(starts, ends, strict=True))
        return [Segment(text, span) for text, span in zip(texts, spans, strict=True) if text]

    def numbers(self, token_ids: Sequence[int], positions: range) -> list[int]:
        """Those of the positions whose tokens hold a digit; all of them where none does."""
        found = [at for at in positions if any(map(str.isdigit, str(self._tokenizer.decode([token_ids[at]]))))]
        return found or list(positions)

    def last_number(self, token_ids: Sequence[int], positions: range) -> list[int]:
        """The positions of the last number, which has one token or several; all of them where there is none."""
        last: list[int] = []
        for at in self.numbers(token_ids, positions):
            last = [*last, at] if last and last[-1] == at - 1 else [at]
        return last

    def _placed(self, token_ids: Sequence[int], found: Iterator[re.Match[str]]) -> Iterator[Segment]:
        """A token belongs to the piece in which it ends: a blank before a word belongs to the word's token."""
        ends = [len(str(self._tokenizer.decode(token_ids[: at + 1]))) for at in range(len(token_ids))]
        for match in found:
            inside = [at for at, end in enumerate(ends) if match.start() < end <= match.end()]
            if inside:
                yield Segment(match.group(), range(inside[0], inside[-1] + 1))
