"""Train probes of steps on activations and on baselines, and see how often each is right about questions it has not seen.

Important steps weigh as much as the removable ones of each family: once as they come, and once within equal relative position,
where being late in a chain tells nothing. (2604.18307 balances by leaving steps out; here there are few.) Chains are split by
question; the paper's code splits by step, which shows a probe the neighbours of what it is asked about. The probe that is
stored is trained against all other steps: the paper's labels leave out what is hard to tell, and that stands in chains, too.

Shapes: n steps, F features.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from reasoning_net.analysis.step_features import ACTIVATIONS, KNOWN, LINEAR, OTHER, POSITION, SURFACE, TF_IDF, TfIdf
from reasoning_net.step_probe import StepMlp

AS_THEY_COME, EQUAL_POSITION = "important against removable", "important against removable, within equal position"
ALL_OTHERS = "important against all other steps"
SETTINGS = (AS_THEY_COME, EQUAL_POSITION, ALL_OTHERS)
_OF_ALL_OTHERS = (ACTIVATIONS, SURFACE, KNOWN, POSITION)
_EPOCHS, _BATCH, _HELD_OUT, _BINS = 30, 32, 0.2, 10
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Rows:
    """Steps that have labels, shortcuts left out."""

    chains: Tensor
    """Which chain each is of, (n,)."""
    families: Sequence[str]
    places: Tensor
    """How far along its chain, 0 to 1, (n,)."""
    important: Tensor
    """(n,) of 0 and 1."""
    removable: Tensor
    """(n,) of 0 and 1; the others are what stage 2 took out, and what comes after the sufficient prefix."""
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


def fit_mlp(features: Tensor, important: Tensor, weights: Tensor, hidden_size: int = 128, seed: int = 0) -> StepMlp:
    """As the paper does: BCE, AdamW 3e-4 with weight decay 1e-4, batches of 32, cosine, 30 epochs."""
    weights = weights / weights.mean()
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
                binary_cross_entropy_with_logits(mlp(features[batch]), important[batch], weights[batch]).backward()
                optimizer.step()
            schedule.step()
    return mlp.eval()


def fit_linear(features: Tensor, important: Tensor, weights: Tensor) -> Predict:
    """Logistic regression on standardised features, to the end."""
    mean, std, weights = features.mean(0), features.std(0) + 1e-4, weights / weights.mean()
    inputs = (features - mean) / std
    weight = torch.zeros(features.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(inputs @ weight + bias, important, weights) + _RIDGE * weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return lambda wanted: ((wanted - mean) / std @ weight + bias).detach()


def compare(rows: Rows, seeds: int) -> dict[str, Any]:
    """By setting and kind of features: accuracy on held-out questions, of all and by family, for each seed; how much was tested
    on, as important steps and their like; agreement with the other base's probe."""
    figures: dict[str, Any] = {}
    progress = tqdm(total=len(SETTINGS) * seeds, desc="probes", unit="split")
    for setting in SETTINGS:
        kinds = _OF_ALL_OTHERS if setting == ALL_OTHERS else (*rows.features, LINEAR, TF_IDF, POSITION)
        found: dict[str, list[dict[str, float]]] = {}
        agreement, numbers = list[float](), list[int]()
        for seed in range(seeds):
            progress.update()
            train, test, weights = split(rows, seed, setting)
            if not len(train) or not len(test):
                continue
            numbers.append(round(float(weights[test].sum())))
            said = {kind: _logits(rows, kind, train, test, weights, seed) for kind in kinds}
            for kind, logits in said.items():
                found.setdefault(kind, []).append(_figures(rows, logits > 0, test, weights[test]))
            if OTHER in said:
                same = ((said[OTHER] > 0) == (said[ACTIVATIONS] > 0)).float()
                agreement.append(_mean(same, weights[test]))
        figures[setting] = {"steps": numbers, "by features": found, "agreement": agreement}
    progress.close()
    return figures


def split(rows: Rows, seed: int, setting: str) -> tuple[Tensor, Tensor, Tensor]:
    """Indices to train and to test on, and weights (n,): in each family, and each tenth of the way, important steps weigh as
    much as what they are compared with, and whichever are fewer weigh 1 each."""
    held = held_out(rows.chains, seed).tolist()
    tenths = (rows.places * _BINS).long().clamp(max=_BINS - 1) if setting == EQUAL_POSITION else torch.zeros_like(rows.chains)
    keys = list(zip(held, rows.families, tenths.tolist(), strict=True))
    others = [True] * len(keys) if setting == ALL_OTHERS else rows.removable.bool().tolist()
    classes = [1 if one else 0 if other else None for one, other in zip(rows.important.tolist(), others, strict=True)]
    numbers = Counter(zip(keys, classes, strict=True))
    fewer = {key: min(numbers[key, 0], numbers[key, 1]) for key in keys}
    weights = torch.tensor(
        [0.0 if one is None else fewer[key] / numbers[key, one] for key, one in zip(keys, classes, strict=True)]
    )
    used, held_rows = weights > 0, torch.tensor(held)
    return (used & ~held_rows).nonzero()[:, 0], (used & held_rows).nonzero()[:, 0], weights


def _logits(rows: Rows, kind: str, train: Tensor, test: Tensor, weights: Tensor, seed: int) -> Tensor:
    important, weights = rows.important[train], weights[train]
    if kind == POSITION:
        places = torch.stack([rows.places, rows.places**2], dim=1)
        return fit_linear(places[train], important, weights)(places[test])
    if kind == TF_IDF:
        grams = TfIdf([rows.tokens[at] for at in train.tolist()])
        seen, unseen = (grams([rows.tokens[at] for at in part.tolist()]) for part in (train, test))
        return fit_linear(seen, important, weights)(unseen)
    features = rows.features[ACTIVATIONS if kind == LINEAR else kind]
    if kind in (LINEAR, SURFACE, KNOWN):
        return fit_linear(features[train], important, weights)(features[test])
    mlp = fit_mlp(features[train], important, weights, seed=seed)
    with torch.no_grad():
        return mlp(features[test])


def _figures(rows: Rows, said: Tensor, test: Tensor, weights: Tensor) -> dict[str, float]:
    right = (said.float() == rows.important[test]).float()
    families = [rows.families[at] for at in test.tolist()]
    groups = {family: [i for i, of in enumerate(families) if of == family] for family in sorted(set(families))}
    return {"accuracy": _mean(right, weights)} | {family: _mean(right[of], weights[of]) for family, of in groups.items()}


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())
