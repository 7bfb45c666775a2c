import math
from pathlib import Path

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.stages.difficulty import Labelling, Settled, classified
from reasoning_net.stages.fit import FitConfig, check_labels
from reasoning_net.stages.observe import Observations, mean_entropies
from reasoning_net.stages.train_probe import predict, train_probe
from router.policy import Mode
from router.probe_config import CLASSES
from server.settings import DEMO_BUNDLE


def test_labels_are_tested_in_the_papers_order() -> None:
    """Normal before Hard: a question that is both is Normal."""
    right, entropy = torch.tensor([1.0, 1.0, 0.7, 0.3, 0.3]), torch.tensor([0.1, 0.9, 0.1, 0.1, 0.9])
    labels = Settled(normal_accuracy=0.8, normal_entropy=0.5, hard_accuracy=0.5).labels(right, entropy)
    assert [CLASSES[label] for label in labels] == ["normal", "easy", "easy", "hard", "hard"]
    both = Settled(normal_accuracy=0.2, normal_entropy=0.5, hard_accuracy=0.5).labels(right, entropy)
    assert [CLASSES[label] for label in both] == ["normal", "easy", "normal", "normal", "hard"]


def test_thresholds_follow_what_was_observed_where_none_are_given() -> None:
    right, entropy = torch.linspace(0, 1, 101), torch.linspace(1, 3, 101)
    settled = Labelling(normal_entropy=1.5).settled(right, entropy)
    assert settled.normal_accuracy == pytest.approx(0.5)
    assert settled.normal_entropy == 1.5
    assert settled.hard_accuracy == pytest.approx(0.25)


def observations(n: int, seed: int) -> Observations:
    """Chains are uncertain, or wrong, by two of the states; a third of the questions were not thought through."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, 8, generator=generator)
    asked = torch.arange(n) % 3 > 0
    right, entropy = (states[:, 0] > -0.5).float(), (states[:, 1] > 0).float()
    chains = {"right": right.where(asked, math.nan), "entropy": entropy.where(asked, math.nan)}
    labels = {"direct": torch.bernoulli(states[:, 2].sigmoid(), generator=generator)}
    return Observations({"mean": states.flip(1), "last": states}, labels, {}, {}, chains=chains)


def test_the_classifier_learns_the_classes_and_leaves_the_probe_as_it_was() -> None:
    train, held = observations(900, seed=0), observations(600, seed=1)
    before = train_probe(train, ("mean", "last"), steps=50)
    probe, figures = classified(before, train, held, Labelling(2, 0.5, 0.5, 0.5), seed=0)
    assert figures["accuracy"] > 0.9 > figures["accuracy of the commonest class"]
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=0.001)
    assert (figures["fitted on"], figures["held out"]) == (600, 400)
    scores = predict(probe, held)
    torch.testing.assert_close(scores["direct"], predict(before, held)["direct"])
    torch.testing.assert_close(sum(scores[name] for name in CLASSES), torch.ones(600))


def test_entropy_is_of_the_whole_distribution_over_what_was_sampled(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    prompts, replies = [[5, 6, 7], [8, 9]], [[[10, 11], [12]], [[13, 14, 15], [16, 17, 18]]]
    found = mean_entropies(base, prompts, replies)
    for row, (prompt, group) in enumerate(zip(prompts, replies, strict=True)):
        expected = []
        for reply in group:
            logits = base.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
            expected.append(torch.distributions.Categorical(logits=logits).entropy().mean())
        assert float(found[row]) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labelling": Labelling(chains=4)}, "for --labels diffadapt"),
        ({"labels": "diffadapt", "temperature": 0.0}, "leave out --temperature 0"),
        ({"labels": "diffadapt", "thinking": Mode.LATENT_EXPLICIT}, "leave out --thinking"),
        ({"labels": "diffadapt", "hidden_size": 0}, "--hidden-size 128"),
    ],
)
def test_what_cannot_be_labelled_is_refused(options: dict, says: str) -> None:
    with pytest.raises(StageError, match=says):
        check_labels(FitConfig(bundle=DEMO_BUNDLE, **options), ("last",))
