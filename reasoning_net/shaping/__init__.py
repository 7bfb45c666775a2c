"""What the literature does to GRPO before the loss: small classes behind one interface, all off by default.

`base.py` has the interface; a family is a file: rewards without labels, rollouts, tokens. `Shapings` is several of them in the
order in which they were named.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reasoning_net.errors import StageError
from reasoning_net.shaping.base import Answers, Groups, Shaping, Tokens, group_advantages, position_divergence
from reasoning_net.shaping.labels import Empo, Spine
from reasoning_net.shaping.sampling import D3s, Perplexity, Seed
from reasoning_net.shaping.tokens import EightyTwenty, Hapo, Steer, Tw

__all__ = ["Answers", "Groups", "Shaping", "Shapings", "Tokens", "group_advantages", "position_divergence"]

SHAPINGS: dict[str, Callable[[], Shaping]] = {
    "seed": Seed, "d3s": D3s, "8020": EightyTwenty, "steer": Steer, "tw": Tw, "empo": Empo, "spine": Spine, "hapo": Hapo,
    "ppl": Perplexity,
}  # fmt: skip
_WITH_A_SHARE: dict[str, Callable[[float], Shaping]] = {"seed": Seed, "8020": EightyTwenty, "ppl": Perplexity}
_ON_THE_CHAIN = (
    "rewards the base's thinking, and what is trained here writes none: the base is frozen. `latentserve train pear` shortens "
    "chains with an adapter"
)
REFUSED: dict[str, str] = {
    "clip-cov": "drops two tokens of ten thousand from the gradient: one or none of a batch of replies",
    "kl-cov": "weighs |log π − log π_old|, which is 0 in the only update of a batch (--inner-steps 1), for two tokens of a "
    "thousand",
    "cure": "samples on from an uncertain token in the middle of long replies; in replies of six tokens these are more samples "
    "of the number: raise --rollouts",
    "hicra": "raises the advantage of planning phrases, and replies after latents have none",
    "rmt": "shortens raw text by a budget of tokens, and trains the base for it",
    "pear": _ON_THE_CHAIN,
    "ares": _ON_THE_CHAIN,
    "aepo": _ON_THE_CHAIN,
    "tea-rl": f"{_ON_THE_CHAIN}; its formulas could not be found either",
}
"""What the literature has, and why it is not here."""


class Shapings:
    """Several shapings as one."""

    def __init__(self, shapings: Sequence[Shaping] = ()) -> None:
        self._all = tuple(shapings)
        self.label_free = any(one.label_free for one in self._all)
        self.compares_positions = any(one.compares_positions for one in self._all)
        self.steers_entropy = any(one.steers_entropy for one in self._all)
        self.token_mean = any(one.token_mean for one in self._all)
        self.dual_clip = min((one.dual_clip for one in self._all if one.dual_clip), default=None)

    def __len__(self) -> int:
        return len(self._all)

    @classmethod
    def named(cls, names: Sequence[str]) -> "Shapings":
        """Raises `StageError` for what there is not, and for what is not applicable, with the reason."""
        shapings = [_named(name) for name in names]
        if sum(one.label_free for one in shapings) > 1:
            raise StageError("empo and spine both make rewards: name one of them.")
        return cls(shapings)

    def rewards(self, answers: Answers) -> Tensor | None:
        return next((rewards for one in self._all if (rewards := one.rewards(answers)) is not None), None)

    def groups(self, groups: Groups, progress: float) -> Groups:
        for one in self._all:
            groups = one.groups(groups, progress)
        return groups

    def weights(self, tokens: Tokens, progress: float) -> Tensor:
        """The product of all weights, (R, Y)."""
        weights = tokens.mask.float()
        for one in self._all:
            weights = weights * one.weights(tokens, progress)
        return weights

    def bounds(self, tokens: Tokens, low: float, high: float) -> tuple[Tensor, Tensor]:
        bounds = torch.full_like(tokens.log_probs, low), torch.full_like(tokens.log_probs, high)
        for one in self._all:
            bounds = one.bounds(tokens, *bounds)
        return bounds

    def penalty(self, entropy: Tensor, tokens: Tokens) -> Tensor:
        found = (one.penalty(entropy, tokens) for one in self._all)
        return sum((one for one in found if one is not None), entropy.new_zeros(()))


def _named(text: str) -> Shaping:
    name, _, setting = text.partition(":")
    if name in REFUSED:
        raise StageError(f"The shaping {name} is not applicable: it {REFUSED[name]}.")
    if name not in SHAPINGS:
        raise StageError(f"There is no shaping {name}. There are: {', '.join(SHAPINGS)}.")
    if not setting:
        return SHAPINGS[name]()
    if text == "steer:linear":
        return Steer(linear=True)
    if name not in _WITH_A_SHARE:
        raise StageError(f"The shaping {name} takes no setting; {', '.join(_WITH_A_SHARE)} do, as in seed:0.5.")
    try:
        share = float(setting)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise StageError(f"--shaping {text}: the setting of {name} is a number above 0, and 1 at most.")
    return _WITH_A_SHARE[name](share)
