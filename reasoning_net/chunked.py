"""Losses over a large vocabulary, a few rows at a time.

Logits of a batch are what training would need most memory for: 64 replies of 128 tokens over 150,000 words are 5 GB in float32,
and softmax and gradients are as much again, each. A loss that looks at each row alone needs those of a few rows at once.

As the head is frozen, the gradient of a row's state is all that the backward pass wants. It is computed with the loss, so no
logits are kept, and none are computed twice (as in Liger's fused linear cross-entropy, in Triton and for a bare matrix).

Shapes: R rows, d hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**25
"""Logits at once: with softmax and gradients about half a gigabyte."""

RowLoss = Callable[..., Tensor]
"""States (R, d) and what else belongs to each row, (R, …) → loss of each row, (R,)."""


def row_losses(loss: RowLoss, vocabulary: int, states: Tensor, *others: Tensor) -> Tensor:
    """The loss of each row of `states` (…, d), which alone get gradients; `others` (…, …) belong to the same rows."""
    size = max(1, CHUNK_LOGITS // vocabulary)
    shape = states.shape[:-1]
    others = tuple(other.flatten(0, len(shape) - 1) for other in others)
    values: Tensor = _RowLosses.apply(loss, size, states.flatten(0, -2), *others)  # type: ignore[no-untyped-call]
    return values.view(shape)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: RowLoss, size: int, states: Tensor, *others: Tensor) -> Tensor:
        values = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[2] else None
        for at in range(0, len(states), size):
            rows = slice(at, at + size)
            with torch.set_grad_enabled(gradient is not None):
                piece = states[rows].detach().requires_grad_(gradient is not None)
                found = loss(piece, *(other[rows] for other in others))
                values[rows] = found.detach()
                if gradient is not None:
                    (gradient[rows],) = torch.autograd.grad(found.sum(), piece)
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        others = [None] * (len(ctx.needs_input_grad) - 3)
        return None, None, gradient * outputs[0][:, None].to(gradient.dtype), *others
