import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from reasoning_net.bundle import Bundle
from reasoning_net.frozen import FrozenBase
from reasoning_net.rollouts import Reply
from reasoning_net.tasks import DemoTask
from router import fit as fitting
from router.fit import (
    FitConfig,
    Observations,
    auroc,
    brier,
    calibration_error,
    fit,
    predict,
    reliability,
    report,
    threshold_for,
)
from server.settings import DEMO_BUNDLE, DEMO_MODEL


def test_auroc_of_perfect_inverted_and_useless_scores() -> None:
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), labels) == 0.0
    assert auroc(torch.tensor([0.1, 0.4, 0.2, 0.3]), labels) == 0.5
    assert auroc(torch.ones(4), labels) == 0.5  # ties count half
    assert math.isnan(auroc(torch.rand(4), torch.ones(4)))


def test_auroc_of_shares_is_that_of_the_single_answers() -> None:
    scores, shares = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.25, 0.5, 1.0])
    answers = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1])
    assert auroc(scores, shares) == pytest.approx(auroc(scores.repeat_interleave(4), answers))
    assert brier(scores, shares) == pytest.approx(float(((scores.repeat_interleave(4) - answers) ** 2).mean()))


def test_calibration_error_and_reliability_compare_predictions_with_shares() -> None:
    scores = torch.tensor([0.25, 0.25, 0.85, 0.85])
    labels = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(scores, labels) == pytest.approx(0.5 * 0.25 + 0.5 * 0.15)
    points = reliability(torch.cat([scores, scores[:1]]), torch.cat([labels, torch.tensor([math.nan])]))
    assert [(round(x, 2), y) for x, y, _ in points] == [(0.25, 0.5), (0.85, 1.0)]


def test_threshold_spends_the_allowed_loss_and_no_more() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    correct = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert threshold_for(scores, correct, max_loss=0.0, explicit_accuracy=1.0) == pytest.approx(0.8)
    assert threshold_for(scores, correct, max_loss=0.25, explicit_accuracy=1.0) == pytest.approx(0.7)
    assert threshold_for(scores, torch.zeros(4), max_loss=0.1, explicit_accuracy=1.0) > 1


def observations(n: int, seed: int) -> Observations:
    """Direct answers are right with a probability that is not linear in the states: the reason for two layers."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, 8, generator=generator)
    chance = (3 * states[:, 0] * states[:, 1]).sigmoid()
    shares = torch.bernoulli(chance.expand(4, -1), generator=generator).mean(0)
    asked = torch.arange(n) % 4 == 0  # explicit answers are dear
    explicit = torch.where(asked, torch.ones(n), math.nan)
    tokens = torch.where(asked, 100 * (0.5 * states[:, 2]).exp(), math.nan)
    levels = torch.arange(n) % 2 + 1.0
    return Observations({"last": states}, {"direct": shares, "explicit": explicit, "tokens": tokens}, {"steps": levels})


def test_a_probe_learns_chances_and_lengths_and_is_calibrated() -> None:
    held = observations(1500, seed=1)
    probe = fit(observations(4000, seed=0), ("last",))
    scores = predict(probe, held)
    right = held.features["last"][:, 0] * held.features["last"][:, 1] > 0
    assert auroc(scores["direct"], right.float()) > 0.9
    assert calibration_error(scores["direct"], held.labels["direct"]) < 0.05
    assert float(scores["explicit"].min()) > 0.9
    figures = report(probe, held, "direct")
    assert (
        figures["explicit tokens"]["mean absolute error"] < 0.5 * figures["explicit tokens"]["mean absolute error of the mean"]
    )
    assert figures["auroc of baselines for direct"]["steps"] == pytest.approx(0.5, abs=0.05)
    assert figures["brier"]["direct"] < 0.2
    linear = predict(fit(observations(4000, seed=0), ("last",), hidden_size=0), held)
    assert auroc(linear["direct"], right.float()) < 0.7


def test_a_chain_without_an_end_is_no_answer() -> None:
    example = next(DemoTask().examples(0, "test"))
    replies = [[Reply([], f"so {example.reply}</think>\n\n{example.reply}", True), Reply([], f"so {example.reply}", False)]]
    assert fitting.right(replies, [example], DemoTask(), after="</think>") == [0.5]
    assert fitting.right(replies, [example], DemoTask()) == [1.0]


def test_fitting_writes_probe_threshold_figures_and_plot_into_the_bundle(tmp_path: Path, base: FrozenBase) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    config = FitConfig(str(DEMO_MODEL), bundle, n=120, explicit_questions=20, samples=2, max_thinking_tokens=512)
    figures = fitting.main(config)
    assert set(figures["accuracy"]) == {"direct", "latent", "explicit"}
    assert figures["accuracy"]["explicit"] > figures["accuracy"]["direct"]
    assert set(figures["auroc of baselines for latent"]) == {"length", "steps", "entropy"}
    assert (bundle / "reliability.png").read_bytes().startswith(b"\x89PNG")
    written = Bundle.load(bundle)
    assert written.manifest.scores["router fit"] == json.loads(json.dumps(figures))
    assert written.manifest.thresholds.latent == pytest.approx(figures["threshold"], abs=1e-4)
    assert written.probe().config.targets == ("direct", "latent", "explicit", "tokens")
