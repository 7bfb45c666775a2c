"""The policy gradient of GRPO: what the network makes of sampled replies, and the loss that reinforces them.

Shapes: R rollouts, Y tokens of a reply, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reasoning_net.shaping import Shapings, Tokens, position_divergence


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network makes of replies, (R, Y) each; 0 where there is no token."""

    log_probs: Tensor
    entropy: Tensor
    """Of the whole distribution; with gradients where a shaping steers it."""
    divergence: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, tokens: Tensor, question: Tensor, shapings: Shapings) -> "Seen":
        """From logits (R, Y, V) at the sampling temperature of tokens (R, Y), −100 where there is none."""
        distribution = logits.float().log_softmax(-1)
        mask = tokens != -100
        chosen = distribution.gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and shapings.steers_entropy):
            # Row by row: a large vocabulary has no room for another copy.
            entropy = torch.stack([-(row.exp() * row).sum(-1) for row in distribution])
        apart = position_divergence(distribution.detach(), question, mask) if shapings.compares_positions else None
        return cls(chosen.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0), apart)

    @classmethod
    def joined(cls, parts: Sequence["Seen"], rows: Sequence[Tensor]) -> "Seen":
        """Parts of a batch in its own order; `rows`: which of the batch's rows each part has, (R,) bool."""
        order = torch.cat([one.nonzero()[:, 0] for one in rows]).argsort()
        apart = [one.divergence for one in parts if one.divergence is not None]
        log_probs, entropy = (torch.cat(which)[order] for which in zip(*((p.log_probs, p.entropy) for p in parts), strict=True))
        return cls(log_probs, entropy, torch.cat(apart)[order] if apart else None)

    def tokens(self, old: Tensor | None, advantages: Tensor, mask: Tensor, question: Tensor) -> Tokens:
        """For shapings. `old`: the log-probabilities when they were sampled; as they are now in the first update."""
        log_probs = self.log_probs.detach()
        old = log_probs if old is None else old
        return Tokens(log_probs, old, self.entropy.detach(), advantages, mask, question, self.divergence)


@dataclass(frozen=True, slots=True)
class Shaped:
    """What shapings say of each token, (R, Y) each."""

    weights: Tensor
    low: Tensor
    """How far below 1 the ratio counts."""
    high: Tensor

    def rows(self, index: Tensor) -> "Shaped":
        return Shaped(self.weights[index], self.low[index], self.high[index])


@dataclass(frozen=True, slots=True)
class Objective:
    clip: float
    clip_high: float | None = None
    kl_weight: float = 0.0
    shapings: Shapings = Shapings()  # noqa: RUF009  # immutable

    def shaped(self, tokens: Tokens, progress: float) -> Shaped:
        high = self.clip if self.clip_high is None else self.clip_high
        weights = self.shapings.weights(tokens, progress)
        return Shaped(weights, *self.shapings.bounds(tokens, self.clip, high))

    def loss(self, seen: Seen, reference: Tensor, tokens: Tokens, shaped: Shaped) -> tuple[Tensor, float, float]:
        """(loss, KL to the reference, share of clipped tokens).

        The mean over each reply's tokens, then over R; or over all tokens, where a shaping says so.
        The KL is Schulman's k3 estimator, as in GRPO.
        """
        mask, advantages = tokens.mask, tokens.advantages[:, None]
        ratio = (seen.log_probs - tokens.old).exp()
        bounded = torch.minimum(torch.maximum(ratio, 1 - shaped.low), 1 + shaped.high)
        gain = torch.minimum(ratio * advantages, bounded * advantages)
        if self.shapings.dual_clip:
            gain = torch.where(advantages < 0, torch.maximum(gain, self.shapings.dual_clip * advantages), gain)
        kl = (reference - seen.log_probs).exp() - (reference - seen.log_probs) - 1
        objective = (gain * shaped.weights - self.kl_weight * kl) * mask
        loss = -(objective.sum() / mask.sum() if self.shapings.token_mean else (objective.sum(1) / mask.sum(1)).mean())
        clipped = ((ratio != bounded) & mask).sum() / mask.sum()
        held = float((kl.detach() * mask).sum() / mask.sum())
        return loss + self.shapings.penalty(seen.entropy, tokens), held, float(clipped)
