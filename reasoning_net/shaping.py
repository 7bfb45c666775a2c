"""What the literature does to the groups of GRPO before the loss: small functions behind one interface, all off by default.

A shaping gets the groups of one step and changes their advantages, or which rollouts are used.
Shapes: Q questions, K rollouts of each.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """The rollouts of one step."""

    rewards: Tensor  # (Q, K)
    advantages: Tensor  # (Q, K)
    used: Tensor  # (Q, K) bool
    answers: list[list[str | None]]
    """What each rollout says the answer is, (Q, K); None where it says nothing."""


Shaping = Callable[[Groups], Groups]


def group_advantages(rewards: Tensor, answers: list[list[str | None]]) -> Groups:
    """Rewards normalised within their group; groups whose rewards are all equal teach nothing and are not used."""
    spread = rewards.std(1, keepdim=True)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)
    return Groups(rewards, advantages, (spread > 0).expand_as(rewards).clone(), answers)


def seed_grpo(groups: Groups) -> Groups:
    """SEED-GRPO: smaller updates where the model is uncertain about the meaning of its answer.

    Advantages are scaled by 1 − H / log K, with H the entropy of the group's clusters of equal answers (semantic entropy).
    """
    scales = []
    for answers in groups.answers:
        counts = Counter(answers).values()
        entropy = -sum(n / len(answers) * math.log(n / len(answers)) for n in counts)
        scales.append(1.0 - entropy / math.log(len(answers)))
    return replace(groups, advantages=groups.advantages * torch.tensor(scales).unsqueeze(1))


def down_sample(groups: Groups, share: float = 0.5) -> Groups:
    """D³S, its sample level: of each group the share of rollouts whose advantages vary most.

    The subset of a given size with the greatest variance is always some of the lowest and the rest of the highest rewards.
    """
    size = max(2, round(groups.rewards.shape[1] * share))
    used = torch.zeros_like(groups.used)
    for row, advantages in enumerate(groups.advantages):
        order = advantages.argsort()
        subsets = [torch.cat([order[:low], order[len(order) - (size - low) :]]) for low in range(size + 1)]
        used[row, max(subsets, key=lambda subset: float(advantages[subset].var()))] = True
    return replace(groups, used=used & groups.used)


SHAPINGS: dict[str, Shaping] = {"seed": seed_grpo, "d3s": down_sample}
