"""Rows of different lengths as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(rows: Sequence[Sequence[int]], multiple: int = 1, *, fill: int = -100, on_the_left: bool = False) -> Tensor:
    """Rows of numbers as one tensor, as long as the longest, rounded up to a multiple."""
    length = -(-max(map(len, rows)) // multiple) * multiple
    gaps = [[fill] * (length - len(row)) for row in rows]
    return torch.tensor(
        [[*gap, *row] if on_the_left else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)], dtype=torch.long
    )


def left_padded(prompts: Sequence[Sequence[int]], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """(token ids, where there is one as bool), (B, T) each: a causal LM writes on where all prompts end."""
    masks = [[1] * len(prompt) for prompt in prompts]
    ids, mask = (padded(rows, multiple, fill=0, on_the_left=True) for rows in (prompts, masks))
    return ids, mask.bool()
