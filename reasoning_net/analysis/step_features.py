"""What a probe of steps may read: activations, and the baselines that it has to beat (2604.18307).

Shapes: n steps, F features, which differ from kind to kind.
"""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from reasoning_net.frozen import FrozenBase
from reasoning_net.step_probe import StepReader

ACTIVATIONS, LINEAR, CONTEXT_FREE, TF_IDF = "activations", "activations, linear", "activations without context", "TF-IDF"
SURFACE, POSITION, RANDOM, OTHER = "position, length, words", "position", "random weights", "another base's activations"
KNOWN = "number, length, words"
"""What the plain baseline knows while a chain is written: how many steps there were, and not how many will come."""
_CATEGORIES = {
    "doubt": r"\b(wait|hmm|wrong|check|right|actually|but|however)\b",
    "conclusion": r"\b(so|now|thus|therefore|hence|answer|leaves)\b",
    "order": r"\b(first|second|third|next|then|finally|start|end)\b",
    "nothing": r"\b(no|not|nothing|never|same)\b",
    "intention": r"\b(i|let|need|we|me)\b",
}
OF_PLACE, _BATCH = 3, 64
_MOST_GRAMS, _LONGEST_GRAM = 4000, 5


def position(number: int) -> list[float]:
    """How far along its chain each step is, from 0 to 1."""
    return [at / max(1, number - 1) for at in range(number)]


def surface(steps: Sequence[str]) -> Tensor:
    """Place, length, and counts of numbers, operators, names and kinds of words, (n, F); the first `OF_PLACE` columns need the
    whole chain."""
    rows = []
    for at, (place, step) in enumerate(zip(position(len(steps)), steps, strict=True)):
        words = step.split()
        counts = [len(re.findall(pattern, step.lower())) for pattern in _CATEGORIES.values()]
        numbers, operators = len(re.findall(r"\d+", step)), len(re.findall(r"[-+*/=×÷]", step))
        capitals = sum(word[:1].isupper() for word in words)
        rows.append([place, place**2, len(steps) - at, at, len(words), len(step), numbers, operators, capitals, *counts])
    return torch.tensor(rows, dtype=torch.float)


def context_free(reader: StepReader, steps: Iterable[str]) -> dict[str, Tensor]:
    """The states (F,) of each step that stands alone, by its text."""
    texts, found = list(dict.fromkeys(step.strip() for step in steps)), dict[str, Tensor]()
    for at in tqdm(range(0, len(texts), _BATCH), desc="steps alone", unit="batch"):
        batch = [reader.encode(text) for text in texts[at : at + _BATCH]]
        opened = [[*reader.layout.before_latents, *ids] for ids in batch]
        states = reader.base.read(opened, range(1, reader.base.num_layers)).all_states  # (B, L, T, d)
        means = [one[:, -len(ids) :].mean(1).flatten() for one, ids in zip(states, batch, strict=True)]
        found |= dict(zip(texts[at : at + _BATCH], torch.stack(means).float().cpu(), strict=True))
    return found


class TfIdf:
    """Weights of the most frequent 1- to 5-grams of tokens, fitted on the steps to train on."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        found = Counter(gram for row in rows for gram in set(_grams(row)))
        self._columns = {gram: at for at, (gram, number) in enumerate(found.most_common(_MOST_GRAMS)) if number > 1}
        self._idf = torch.tensor([math.log((1 + len(rows)) / (1 + found[gram])) + 1 for gram in self._columns])

    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(n, F), rows of length 1."""
        weights = torch.zeros(len(rows), len(self._columns))
        for at, row in enumerate(rows):
            for gram, number in Counter(_grams(row)).items():
                if gram in self._columns:
                    weights[at, self._columns[gram]] = number
        return torch.nn.functional.normalize(weights * self._idf, dim=1)


def _grams(row: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(row[at : at + size]) for size in range(1, _LONGEST_GRAM + 1) for at in range(len(row) - size + 1)]


def random_base(base: FrozenBase, seed: int) -> FrozenBase:
    """A base of the same shape and tokenizer that has learnt nothing."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(base.model.config).save_pretrained(directory)
        base.tokenizer.save_pretrained(directory)
        return FrozenBase(directory, base.device)
