"""The one interface of what the literature does to GRPO, at three levels: rewards, groups, tokens.

Shapes: Q questions, K rollouts of each, R rollouts that are used, Y tokens of a reply.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Answers = Sequence[Sequence[str | None]]
"""What each rollout says the answer is, (Q, K); None where it says nothing."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The rollouts of one step."""

    rewards: Tensor  # (Q, K)
    advantages: Tensor  # (Q, K)
    used: Tensor  # (Q, K) bool
    answers: Answers
    lengths: Tensor  # (Q, K) tokens of each reply


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of the rollouts that are used, as the network sees them now; without gradients."""

    log_probs: Tensor  # (R, Y)
    old: Tensor  # (R, Y) log-probabilities when they were sampled
    entropy: Tensor  # (R, Y) of the whole distribution, in nats
    advantages: Tensor  # (R,)
    mask: Tensor  # (R, Y) bool
    question: Tensor  # (R,) which group a rollout is of
    divergence: Tensor | None = None
    """How far a group's distributions differ at each position, (R, Y); where a shaping compares positions."""

    @property
    def ratio(self) -> Tensor:
        return (self.log_probs - self.old).exp()


class Shaping:
    """Changes what it wants to and leaves the rest as GRPO has it."""

    label_free = False
    """Gives rewards, from the answers alone."""
    compares_positions = False
    """Needs `Tokens.divergence`."""
    token_mean = False
    """The loss is the mean over all tokens, and not over each reply's first."""
    steers_entropy = False
    """Has a penalty."""
    dual_clip: float | None = None
    """Bound on the loss of a token with a negative advantage, in multiples of it."""

    def rewards(self, answers: Answers) -> Tensor | None:  # noqa: ARG002
        """Rewards (Q, K) in place of right or wrong, from the answers alone. NaN: the group is not used."""
        return None

    def groups(self, groups: Groups, progress: float) -> Groups:  # noqa: ARG002
        """Other advantages, or fewer rollouts. `progress`: share of the run that is done."""
        return groups

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        """What each token's gain is multiplied with, (R, Y)."""
        return tokens.mask.float()

    def bounds(self, tokens: Tokens, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """How far below and above 1 the ratio counts, (R, Y) each."""
        return low, high

    def penalty(self, entropy: Tensor, tokens: Tokens) -> Tensor | None:  # noqa: ARG002
        """What is added to the loss; `entropy` (R, Y) is the same as the tokens', with gradients."""
        return None


def group_advantages(rewards: Tensor, answers: Answers, lengths: Tensor) -> Groups:
    """Rewards normalised within their group; groups whose rewards are all equal teach nothing and are not used."""
    spread = rewards.std(1, keepdim=True)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)
    return Groups(rewards, advantages.nan_to_num(), (spread > 0).expand_as(rewards).clone(), answers, lengths)


def semantic_entropy(answers: Sequence[str | None]) -> float:
    """Of the clusters of equal answers, in nats."""
    shares = [count / len(answers) for count in Counter(answers).values()]
    return -sum(share * math.log(share) for share in shares)


def top_share(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """Which of the masked values are at least their (1 − share) quantile, as bool."""
    if not bool(mask.any()):
        return mask
    chosen = values[mask].sort().values  # torch.quantile takes 16 million values at most
    return mask & (values >= chosen[min(len(chosen) - 1, math.ceil((1 - share) * len(chosen)))])


def position_divergence(log_distribution: Tensor, question: Tensor, mask: Tensor) -> Tensor:
    """How far the distributions of a group differ at each position, (R, Y), from log-distributions (R, Y, V).

    Schulman's k3 estimator of the group's mean ‖ each rollout, summed over the vocabulary and averaged over the group. Rollouts
    that have ended count as uniform.
    """
    uniform = -math.log(log_distribution.shape[-1])
    padded = log_distribution.masked_fill(~mask[..., None], uniform)
    result = torch.zeros_like(mask, dtype=padded.dtype)
    for rows in (question == one for one in question.unique()):
        group = padded[rows]
        apart = group.logsumexp(0) - math.log(len(group)) - group  # (K, Y, V)
        result[rows] = (apart.exp() - apart - 1).sum(-1).mean(0)
    return result
