"""Train probes of steps on activations and on baselines, and see how often each is right about questions it has not seen.

Important and removable steps are compared in equal numbers of each family: once as they come, and once within equal relative
position, where being late in a chain tells nothing. Chains are split by question; 2604.18307's code splits by step, which
shows a probe the neighbours of what it is asked about.

Shapes: n steps, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from reasoning_net.analysis.step_features import ACTIVATIONS, LINEAR, OTHER, POSITION, SURFACE, TF_IDF, TfIdf
from reasoning_net.step_probe import StepMlp
from router.figures import auroc

AS_THEY_COME, EQUAL_POSITION = "as they come", "within equal position"
_EPOCHS, _BATCH, _HELD_OUT, _BINS = 30, 32, 0.2, 10
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Rows:
    """Steps that are important or removable."""

    chains: Tensor
    """Which chain each is of, (n,)."""
    families: Sequence[str]
    places: Tensor
    """How far along its chain, 0 to 1, (n,)."""
    important: Tensor
    """(n,) of 0 and 1."""
    tokens: Sequence[Sequence[int]]
    features: Mapping[str, Tensor]
    """(n, F) of each kind."""


Predict = Callable[[Tensor], Tensor]
"""Logits (n,) of features (n, F)."""


def held_out(chains: Tensor, seed: int) -> Tensor:
    """(n,) bool: steps of the fifth of all chains that is kept from training."""
    every = chains.unique()
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return torch.isin(chains, every[order[: max(1, round(_HELD_OUT * len(every)))]])


def fit_mlp(features: Tensor, important: Tensor, hidden_size: int = 128, seed: int = 0) -> StepMlp:
    """As the paper does: BCE, AdamW 3e-4 with weight decay 1e-4, batches of 32, cosine, 30 epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mlp = StepMlp(features.shape[1], hidden_size)
        mlp.mean.copy_(features.mean(0))
        mlp.std.copy_(features.std(0) + 1e-4)
        optimizer = torch.optim.AdamW(mlp.parameters(), lr=3e-4, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(features)).split(_BATCH):
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(mlp(features[batch]), important[batch]).backward()
                optimizer.step()
            schedule.step()
    return mlp.eval()


def fit_linear(features: Tensor, important: Tensor) -> Predict:
    """Logistic regression on standardised features, to the end."""
    mean, std = features.mean(0), features.std(0) + 1e-4
    inputs = (features - mean) / std
    weight = torch.zeros(features.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(inputs @ weight + bias, important) + _RIDGE * weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return lambda wanted: ((wanted - mean) / std @ weight + bias).detach()


def compare(rows: Rows, seeds: int) -> dict[str, Any]:
    """By setting and kind of features: (accuracy, AUROC) of each seed; by family, accuracy; agreement with the other base."""
    figures: dict[str, Any] = {}
    for setting in (AS_THEY_COME, EQUAL_POSITION):
        found: dict[str, list[dict[str, float]]] = {}
        agreement, numbers = list[float](), list[int]()
        for seed in range(seeds):
            train, test = _chosen(rows, seed, setting)
            if not len(train) or not len(test):
                continue
            numbers.append(len(test))
            said = {kind: _logits(rows, kind, train, test, seed) for kind in (*rows.features, LINEAR, TF_IDF, POSITION)}
            for kind, logits in said.items():
                found.setdefault(kind, []).append(_figures(rows, logits, test))
            if OTHER in said:
                agreement.append(float(((said[OTHER] > 0) == (said[ACTIVATIONS] > 0)).float().mean()))
        figures[setting] = {"steps": numbers, "by features": found, "agreement": agreement}
    return figures


def _chosen(rows: Rows, seed: int, setting: str) -> tuple[Tensor, Tensor]:
    """Indices to train and to test on: of each family, and of each tenth of the way, as many important as removable steps."""
    held = held_out(rows.chains, seed)
    tenths = (rows.places * _BINS).long().clamp(max=_BINS - 1) if setting == EQUAL_POSITION else torch.zeros_like(rows.chains)
    groups: dict[tuple[Any, ...], tuple[list[int], list[int]]] = {}
    for at in torch.randperm(len(held), generator=torch.Generator().manual_seed(seed)).tolist():
        key = (bool(held[at]), rows.families[at], int(tenths[at]))
        groups.setdefault(key, ([], []))[int(rows.important[at])].append(at)
    parts: dict[bool, list[int]] = {False: [], True: []}
    for key, (removable, important) in groups.items():
        number = min(len(removable), len(important))
        parts[key[0]] += removable[:number] + important[:number]
    return torch.tensor(parts[False], dtype=torch.long), torch.tensor(parts[True], dtype=torch.long)


def balanced(rows: Rows, seed: int) -> Tensor:
    """The steps that the stored probe is trained on."""
    return _chosen(rows, seed, AS_THEY_COME)[0]


def _logits(rows: Rows, kind: str, train: Tensor, test: Tensor, seed: int) -> Tensor:
    important = rows.important[train]
    if kind == POSITION:
        places = torch.stack([rows.places, rows.places**2], dim=1)
        return fit_linear(places[train], important)(places[test])
    if kind == TF_IDF:
        weights = TfIdf([rows.tokens[at] for at in train.tolist()])
        seen, unseen = (weights([rows.tokens[at] for at in part.tolist()]) for part in (train, test))
        return fit_linear(seen, important)(unseen)
    features = rows.features[ACTIVATIONS if kind == LINEAR else kind]
    if kind in (LINEAR, SURFACE):
        return fit_linear(features[train], important)(features[test])
    mlp = fit_mlp(features[train], important, seed=seed)
    with torch.no_grad():
        return mlp(features[test])


def _figures(rows: Rows, logits: Tensor, test: Tensor) -> dict[str, float]:
    important = rows.important[test]
    right = ((logits > 0).float() == important).float()
    families = {
        family: [i for i, at in enumerate(test.tolist()) if rows.families[at] == family] for family in set(rows.families)
    }
    by_family = {family: float(right[of].mean()) for family, of in sorted(families.items()) if of}
    return {"accuracy": float(right.mean()), "auroc": auroc(logits, important)} | by_family
