"""DiffAdapt's labels and classifier (ICLR 2026): Normal, Hard and Easy by what the base's own chains were like.

Of each question several explicit answers are sampled: a is the share of right ones, H the mean entropy of a token. Normal:
a ≥ α and H ≤ β; else Hard: a < γ; else Easy: right, but uncertain. The classifier is the paper's: the last layer's state after
prefill through a two-layer ReLU MLP and a softmax, cross-entropy, AdamW at 1e-3, 100 epochs.

The paper takes its thresholds from the observed distribution. Here, unless they are given, α is the median of a, β the median
of H, γ the lower quartile of a, of the questions that the classifier is fitted on. Inputs are standardised, as the probe's.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import cross_entropy

from reasoning_net.options import Share
from reasoning_net.stages.observe import Observations
from router.probe import Probe
from router.probe_config import CLASSES

_EPOCHS, _BATCH, _LEARNING_RATE = 100, 64, 1e-3
_NORMAL, _HARD, _EASY = range(len(CLASSES))


@dataclass(frozen=True, slots=True)
class Labelling:
    """How DiffAdapt's labels are made. Thresholds that are None come from the observed distribution."""

    chains: Annotated[int, Field(gt=1)] = 10
    """Explicit answers to each of the explicit questions."""
    normal_accuracy: Share | None = None
    """α: a Normal question is answered right at least as often. Default: the median."""
    normal_entropy: NonNegativeFloat | None = None
    """β: its chains' tokens have at most this mean entropy, in nats. Default: the median."""
    hard_accuracy: Share | None = None
    """γ: of the others, those that are answered right more seldom are Hard. Default: the lower quartile."""

    def settled(self, right: Tensor, entropy: Tensor) -> "Settled":
        """With those of the observed distribution where none are given."""
        observed = (right.quantile(0.5), entropy.quantile(0.5), right.quantile(0.25))
        given = (self.normal_accuracy, self.normal_entropy, self.hard_accuracy)
        return Settled(*(float(found) if value is None else value for value, found in zip(given, observed, strict=True)))


@dataclass(frozen=True, slots=True)
class Settled:
    """The thresholds, all of them known."""

    normal_accuracy: float
    normal_entropy: float
    hard_accuracy: float

    def labels(self, right: Tensor, entropy: Tensor) -> Tensor:
        """Classes (n,), tested in the paper's order."""
        others = torch.where(right < self.hard_accuracy, _HARD, _EASY)
        return torch.where((right >= self.normal_accuracy) & (entropy <= self.normal_entropy), _NORMAL, others)


def classified(
    probe: Probe, train: Observations, held: Observations, labelling: Labelling, seed: int
) -> tuple[Probe, dict[str, Any]]:
    """The probe with a head for the classes, fitted on the questions that were thought through, and held-out figures."""
    seen, unseen = _Chains.of(probe, train), _Chains.of(probe, held)
    settled = labelling.settled(seen.right, seen.entropy)
    labels, truth = (settled.labels(chains.right, chains.entropy) for chains in (seen, unseen))
    probe = train_classes(probe, seen.features, labels, seed)
    with torch.no_grad():
        found = probe.classify(unseen.features).argmax(1)
    majority = labels.bincount(minlength=len(CLASSES)).argmax()
    return probe, {
        "thresholds": {name: round(value, 4) for name, value in asdict(settled).items()},
        "shares": {name: _mean(torch.cat([labels, truth]) == index) for index, name in enumerate(CLASSES)},
        "right": _mean(seen.right), "entropy": _mean(seen.entropy),
        "accuracy": _mean(found == truth), "accuracy of the commonest class": _mean(truth == majority),
        "fitted on": len(labels), "held out": len(truth),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Chains:
    """Of the questions that were thought through."""

    features: Tensor  # (n, F)
    right: Tensor  # (n,)
    entropy: Tensor  # (n,)

    @classmethod
    def of(cls, probe: Probe, observed: Observations) -> "_Chains":
        features = torch.cat([observed.features[name] for name in probe.config.features], dim=1)
        asked = ~observed.chains["right"].isnan()
        return cls(features[asked].cpu(), observed.chains["right"][asked], observed.chains["entropy"][asked])


def train_classes(probe: Probe, features: Tensor, labels: Tensor, seed: int) -> Probe:
    """The probe with a trained head for the classes, labels (n,); what it has learnt before stays."""
    torch.manual_seed(seed)
    with_head = Probe(probe.config.model_copy(update={"classes": True}))
    with_head.load_state_dict(probe.state_dict(), strict=False)
    optimizer = torch.optim.AdamW(with_head.classifier.parameters(), lr=_LEARNING_RATE)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(features)).split(_BATCH):
            optimizer.zero_grad()
            cross_entropy(with_head.classify(features[batch]), labels[batch]).backward()
            optimizer.step()
    return with_head.eval()


def _mean(values: Tensor) -> float:
    return round(float(values.float().mean()), 4)
