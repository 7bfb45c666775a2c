"""A chain's steps, token by token: a step ends with its line, or its paragraph."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class Boundaries:
    """Which tokens of a base end a line. What is blank belongs to no step, so a step's end is the same whether one line break
    follows it or two."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        self.breaks = frozenset(token for token, text in enumerate(texts) if "\n" in text)
        self.blank = frozenset(token for token, text in enumerate(texts) if not text.strip())
        self._stops = frozenset(token for token, text in enumerate(texts) if text.rstrip().endswith((".", "?", "!")))
        self._spaced = frozenset(token for token, text in enumerate(texts) if text[:1].isspace())

    def is_end(self, token: int) -> bool:
        return token in self.breaks

    def is_blank(self, token: int) -> bool:
        return token in self.blank

    def trimmed(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Without the blank at its end."""
        end = len(token_ids)
        while end and self.is_blank(token_ids[end - 1]):
            end -= 1
        return token_ids[:end]

    def ends(self, token_ids: Sequence[int]) -> list[int]:
        """How long the chain is at the end of each of its steps, in tokens, without the blank after it."""
        found = (len(self.trimmed(token_ids[:at])) for at, token in enumerate(token_ids) if self.is_end(token))
        return sorted({length for length in found if length})

    def pieces(self, token_ids: Sequence[int], *, sentences: bool = False) -> list[Sequence[int]]:
        """The chain's steps, each with the blank before it: together they are the chain, without the blank at its end.

        `sentences`: steps also end with . ? or ! where a blank follows (2604.18307), and not only with their line.
        """
        pieces, start, last = list[Sequence[int]](), 0, 0
        for at, token in enumerate(token_ids):
            if self.is_blank(token):
                continue
            if at and self._between(token_ids[last : at + 1], sentences):
                pieces.append(token_ids[start : last + 1])
                start = last + 1
            last = at
        rest = self.trimmed(token_ids[start:])
        return [piece for piece in (*pieces, rest) if self.trimmed(piece)]

    def _between(self, window: Sequence[int], sentences: bool) -> bool:
        """Whether a step ends between the first and the last of these tokens; what is between them is blank."""
        if any(self.is_end(token) for token in window[:-1]):
            return True
        return sentences and window[0] in self._stops and (len(window) > 2 or window[-1] in self._spaced)


def literal_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that are nothing but numbers, or one letter or sign: what stands for itself, and means nothing in between."""
    texts = (text.strip() for text in tokenizer.batch_decode([[token] for token in range(len(tokenizer))]))
    return [token for token, text in enumerate(texts) if text.isdigit() or len(text) == 1]
