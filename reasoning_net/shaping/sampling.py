"""Which rollouts count, and how much: by a group's uncertainty, by how much they differ, by how likely they were."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reasoning_net.shaping.base import Groups, Shaping, Tokens, semantic_entropy, top_share


class Seed(Shaping):
    """SEED-GRPO (2505.12346): smaller updates where the model is uncertain about the meaning of its answer.

    Advantages are scaled by 1 − α · H / log K, with H the entropy of the group's clusters of equal answers. The paper weighs
    clusters by their likelihood, and does not divide advantages by their deviation; we count, and divide.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self._alpha = alpha

    def groups(self, groups: Groups, progress: float) -> Groups:  # noqa: ARG002
        most = math.log(groups.rewards.shape[1])
        scales = torch.tensor([1.0 - self._alpha * semantic_entropy(answers) / most for answers in groups.answers])
        return replace(groups, advantages=groups.advantages * scales.unsqueeze(1))


class D3s(Shaping):
    """D³S: the rollouts whose advantages vary most, first of each group, then again across the batch; of their tokens those
    with the greatest |A| · H.

    It begins with few and ends with all, because a narrow choice overfits late. The paper's schedule is this one, its ends are
    ours: half of the rollouts each time, a fifth of the tokens.
    """

    rollouts, tokens = 0.5, 0.2

    def groups(self, groups: Groups, progress: float) -> Groups:
        share = _scheduled(self.rollouts, progress)
        size = max(2, round(groups.rewards.shape[1] * share))
        used = torch.zeros_like(groups.used)
        for row, advantages in enumerate(groups.advantages):
            used[row, most_varied(advantages, size)] = True
        kept = (used & groups.used).nonzero()
        chosen = kept[most_varied(groups.advantages[tuple(kept.T)], max(2, round(len(kept) * share)))]
        used.zero_()[tuple(chosen.T)] = True
        return replace(groups, used=used)

    def weights(self, tokens: Tokens, progress: float) -> Tensor:
        score = tokens.advantages.abs()[:, None] * tokens.entropy
        return top_share(score, tokens.mask, _scheduled(self.tokens, progress)).float()


def _scheduled(first: float, progress: float) -> float:
    return (1 - progress) * first + progress


def most_varied(values: Tensor, size: int) -> Tensor:
    """The indices of the `size` values whose variance is greatest: always some of the lowest and the rest of the highest."""
    order = values.argsort()
    if size >= len(order):
        return order
    sums, squares = (torch.cat([one.new_zeros(1), one.cumsum(0)]) for one in (values[order], values[order].square()))
    low = torch.arange(size + 1)
    high = len(order) - (size - low)  # the first of the highest
    total, squared = (one[low] + one[-1] - one[high] for one in (sums, squares))
    best = int((squared - total.square() / size).argmax())
    return torch.cat([order[:best], order[len(order) - (size - best) :]])


class Perplexity(Shaping):
    """Entropy-performance: A · (1 − α · w), with w the reply's log-perplexity, standardised over the batch.

    The paper's term by position says nothing in replies of six tokens and is left out.
    """

    def __init__(self, alpha: float = 0.01) -> None:
        self._alpha = alpha

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        log_ppl = -(tokens.log_probs * tokens.mask).sum(1) / tokens.mask.sum(1)
        spread = log_ppl.std() if len(log_ppl) > 1 else torch.zeros(())
        standard = (log_ppl - log_ppl.mean()) / (spread + 1e-6)
        return (1 - self._alpha * standard).clamp(min=0.0)[:, None] * tokens.mask
