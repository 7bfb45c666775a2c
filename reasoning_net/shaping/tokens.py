"""Which tokens count, and how much. In short replies these are other ways to weigh the number."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reasoning_net.shaping.base import Groups, Shaping, Tokens, top_share


class EightyTwenty(Shaping):
    """80/20 (2506.01939): only the fifth of the tokens with the highest entropy. The paper adds clip-higher (`--clip-high`)."""

    def __init__(self, share: float = 0.2) -> None:
        self._share = share

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        return top_share(tokens.entropy, tokens.mask, self._share).float()


class Steer(Shaping):
    """STEER: less of those tokens whose update would change the entropy most.

    Ω = A / π_old · π (1 − π)(log π + H), the weight exp(−k |Ω|), down to 0.8; `steer:linear` maps |Ω| to [1.2, 0.8].
    """

    least, floor = 0.8, 0.02

    def __init__(self, linear: bool = False) -> None:
        self._linear = linear

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        p = tokens.log_probs.exp()
        change = tokens.advantages[:, None] / tokens.old.exp() * p * (1 - p) * (tokens.log_probs + tokens.entropy)
        size = change.abs() * tokens.mask
        if self._linear:
            return (2 - self.least - 2 * (1 - self.least) * size / size.max().clamp(min=1e-8)) * tokens.mask
        k = -math.log(self.least) / max(float(size.max()), self.floor)
        return (-k * size).exp().clamp(self.least, 1.0) * tokens.mask


class Tw(Shaping):
    """TW-GRPO: more of the positions at which a group's distributions differ; the loss is the mean over tokens.

    For replies that are aligned, as by a template. Long, free ones have nothing in common at a position. The paper's soft
    rewards for multiple choice have no place here.
    """

    compares_positions, token_mean = True, True
    most = 1.4

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        assert tokens.divergence is not None, "the loss gives it to whoever compares positions"
        apart, weights = tokens.divergence, torch.zeros_like(tokens.log_probs)
        for rows in (tokens.question == one for one in tokens.question.unique()):
            group = apart[rows]
            seen = group[tokens.mask[rows]]
            scaled = (group - seen.min()) / (seen.max() - seen.min()).clamp(min=1e-8)
            weights[rows] = 1 + (self.most - 1) * scaled
        return weights * tokens.mask


class Hapo(Shaping):
    """HAPO: advantages normalised over the tokens of a group, redistributed and clipped by each token's entropy.

    h is the log-entropy's distance from its 0.8 quantile, scaled to [−1, 1] (in the released code a sign slips on the lower
    side; this is the intent). Where h ≤ 0 a token's gain is scaled by 1 + h while its ratio is near 1, where h > 0 once it is
    not; so in the first update of a batch only certain tokens lose weight. The sampler's temperature by entropy is left out.
    """

    epsilon, dual_clip = 0.2, 10.0

    def groups(self, groups: Groups, progress: float) -> Groups:  # noqa: ARG002
        lengths = groups.lengths.float()
        number = lengths.sum(1, keepdim=True)
        mean = (groups.rewards * lengths).sum(1, keepdim=True) / number
        apart = groups.rewards - mean
        spread = ((apart.square() * lengths).sum(1, keepdim=True) / (number - 1)).sqrt()
        advantages = apart / (spread + 1e-4)
        is_odd = (advantages.abs() >= 5).any(1, keepdim=True)  # as GRPO then
        return replace(groups, advantages=torch.where(is_odd, groups.advantages, advantages))

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        h = relative_entropy(tokens)
        is_near = (tokens.ratio - 1).abs() < self.epsilon / 2
        return torch.where((h > 0) != is_near, 1 + h, 1.0) * tokens.mask

    def bounds(self, tokens: Tokens, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        h = relative_entropy(tokens)
        return torch.where(h <= 0, low * (1 - h), low), torch.where(h > 0, high * (1 + h), high)


def relative_entropy(tokens: Tokens) -> Tensor:
    """How far the log of each token's entropy is from its 0.8 quantile, (R, Y), in [−1, 1] on either side."""
    logs = tokens.entropy.clamp(min=1e-8).log()
    apart = (logs - logs[tokens.mask].quantile(0.8)) * tokens.mask
    above, below = (float(side.relu().max()) for side in (apart, -apart))
    return torch.where(apart > 0, apart / (above or 1.0), apart / (below or 1.0))
