"""Rewards without labels: what most rollouts say is taken for right.

Their danger is agreement on a wrong answer: keep labelled validation questions (`--evaluate-on`) and stop at their peak.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from reasoning_net.shaping.base import Answers, Shaping, Tokens, semantic_entropy, top_share


class Empo(Shaping):
    """EMPO (2504.05812): the share of the group that gives the same answer; 0 for none.

    Groups in which all answers differ are not used.
    """

    label_free = True

    def rewards(self, answers: Answers) -> Tensor:
        return torch.tensor([self._of(group) for group in answers])

    def _of(self, group: Sequence[str | None]) -> list[float]:
        if semantic_entropy(group) >= math.log(len(group)) - 1e-9:
            return [math.nan] * len(group)
        counts = Counter(group)
        return [counts[answer] / len(group) if answer is not None else 0.0 for answer in group]


class Spine(Shaping):
    """SPINE: 1 for the group's most frequent answer; only forks are learnt from, the tokens of the highest entropy, and a
    band keeps them from collapsing and from melting.

    The paper's band and quantile could not be looked up: the form of the band, its ends (nats) and its weight are ours.
    """

    label_free = steers_entropy = True
    share, lowest, highest, weight = 0.2, 0.3, 1.5, 0.05

    def rewards(self, answers: Answers) -> Tensor:
        return torch.tensor([self._of(group) for group in answers])

    def _of(self, group: Sequence[str | None]) -> list[float]:
        counts = Counter(answer for answer in group if answer is not None)
        most = counts.most_common(1)[0][0] if counts else None
        return [float(answer is not None and answer == most) for answer in group]

    def weights(self, tokens: Tokens, progress: float) -> Tensor:  # noqa: ARG002
        return top_share(tokens.entropy, tokens.mask, self.share).float()

    def penalty(self, entropy: Tensor, tokens: Tokens) -> Tensor:
        forks = entropy[top_share(tokens.entropy, tokens.mask, self.share)]
        outside = (self.lowest - forks).relu().square() + (forks - self.highest).relu().square()
        return self.weight * outside.sum() / tokens.mask.sum()
