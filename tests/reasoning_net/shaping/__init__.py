"""Shapings against values that were worked out by hand."""

from collections.abc import Sequence

import torch

from reasoning_net.shaping import Tokens

Rows = Sequence[Sequence[float]]


def tokens_of(
    *, log_probs: Rows = (), old: Rows = (), entropy: Rows = (), advantages: Sequence[float] = (), divergence: Rows = (),
    question: Sequence[int] = (), written: Sequence[int] = (),
) -> Tokens:  # fmt: skip
    """What a test does not name is 0, of one group, and of full length. `written`: tokens of each reply."""
    shape = torch.tensor(next(one for one in (log_probs, entropy, divergence) if one)).shape
    zeros = torch.zeros(shape)
    lengths = torch.tensor(written or [shape[1]] * shape[0])
    now = torch.tensor(log_probs) if log_probs else zeros
    return Tokens(
        log_probs=now,
        old=torch.tensor(old) if old else now,
        entropy=torch.tensor(entropy) if entropy else zeros,
        advantages=torch.tensor(advantages) if advantages else torch.ones(shape[0]),
        mask=torch.arange(shape[1]) < lengths[:, None],
        question=torch.tensor(question) if question else torch.zeros(shape[0], dtype=torch.long),
        divergence=torch.tensor(divergence) if divergence else None,
    )
