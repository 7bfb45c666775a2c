import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.bundle import Bundle
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.rollouts import Reply
from reasoning_net.stages import fit as fitting
from reasoning_net.stages.difficulty import Labelling
from reasoning_net.stages.fit import (
    FitConfig,
    calibrated,
    calibration_outcomes,
    check_features,
    check_rows,
    fit_confidence,
    report,
)
from reasoning_net.stages.observe import Answers, Observations, Store, doubts
from reasoning_net.stages.train_probe import predict, train_probe
from reasoning_net.tasks import DemoTask, TaskSpec
from router.figures import auroc, calibration_error
from router.outcomes import Outcome
from router.policy import Mode, Scores
from router.probe_config import scores_of
from server.settings import DEMO_BUNDLE


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
    right = torch.bernoulli(chance.expand(4, -1), generator=generator).T
    confidence = (0.5 + 0.4 * (2 * right - 1) * torch.rand(n, 4, generator=generator)).clamp(0, 1)
    answers = {
        "correct": right,
        "confidence": confidence,
        "tokens": torch.full((n, 4), 6.0),
        "direct tokens": torch.full((n,), 6.0),
    }
    labels = {"direct": shares, "explicit": explicit, "tokens": tokens}
    return Observations({"last": states}, labels, {"steps": levels}, answers)


def test_a_probe_learns_chances_and_lengths_and_is_calibrated() -> None:
    held = observations(1500, seed=1)
    probe = train_probe(observations(4000, seed=0), ("last",))
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
    linear = predict(train_probe(observations(4000, seed=0), ("last",), hidden_size=0), held)
    assert auroc(linear["direct"], right.float()) < 0.7


def test_layers_are_mixed_by_what_they_are_worth() -> None:
    def with_layers(n: int, seed: int) -> Observations:
        observed = observations(n, seed)
        noise = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed + 100))
        return replace(observed, features={"last": torch.cat([noise, observed.features["last"], noise], dim=1)})

    held = with_layers(1500, seed=1)
    probe = train_probe(with_layers(4000, seed=0), ("last",), layers=(1, 2))
    assert probe.mix.argmax() == 1
    informed = held.features["last"][:, 8] * held.features["last"][:, 9] > 0
    assert auroc(predict(probe, held)["direct"], informed.float()) > 0.85


@pytest.mark.parametrize(
    ("features", "layers", "says"),
    [(("latents",), (), "no feature latents"), (("last",), (9,), "Layers are 1 to 5"), (("latents",), (2,), "last and mean")],
)
def test_features_that_are_not_there(features: tuple[str, ...], layers: tuple[int, ...], says: str) -> None:
    with pytest.raises(StageError, match=says):
        check_features(features, layers, has_network="last and" in says, num_layers=6)


def test_a_ladder_stays_below_the_latents_that_are_served() -> None:
    with pytest.raises(StageError, match="below the bundle's 16"):
        fitting.main(FitConfig(bundle=DEMO_BUNDLE, ladder=(4, 16)))


def test_confidence_says_how_likely_an_answer_is_right() -> None:
    held = observations(1500, seed=1)
    scores = predict(train_probe(observations(4000, seed=0), ("last",)), held)
    per_question = scores_of({name: values.tolist() for name, values in scores.items()})
    outcomes, confidence = calibration_outcomes(held, per_question, Mode.DIRECT)
    posteriors = torch.tensor([confidence.posterior(o.scores.direct, o.confidence) for o in outcomes])
    right = torch.tensor([o.correct[Mode.DIRECT] for o in outcomes])
    assert auroc(posteriors, right) > auroc(scores["direct"], right) + 0.02
    assert calibration_error(posteriors, right) < 0.05


def test_confidence_of_answers_that_are_all_right_is_finite() -> None:
    confidence = fit_confidence(torch.full((50,), 0.9), torch.rand(50), torch.ones(50))
    assert confidence.posterior(0.9, 0.9) > 0.95


def test_a_chain_without_an_end_is_no_answer() -> None:
    example = next(DemoTask().examples(0, "test"))
    replies = [[Reply([1], f"so {example.reply}</think>\n\n{example.reply}", True), Reply([1], f"so {example.reply}", False)]]
    assert Answers.of(replies, [example], DemoTask(), after="</think>").correct.tolist() == [[1.0, 0.0]]
    assert Answers.of(replies, [example], DemoTask()).correct.tolist() == [[1.0, 1.0]]


def test_fitting_writes_probe_calibration_figures_and_plot_into_the_bundle(tmp_path: Path, base: FrozenBase) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    config = FitConfig(
        bundle=bundle,
        n=120,
        explicit_questions=20,
        samples=2,
        max_thinking_tokens=512,
        ladder=(4, 8),
        labels="diffadapt",
        labelling=Labelling(chains=2),
    )
    figures = fitting.main(config)
    assert set(figures["accuracy"]) == {"direct", "latent", "explicit"}
    assert figures["accuracy"]["explicit"] > figures["accuracy"]["direct"]
    assert set(figures["auroc of baselines for latent"]) == {"length", "steps", "entropy"}
    assert (bundle / "reliability.png").read_bytes().startswith(b"\x89PNG")
    written = Bundle.load(bundle)
    calibrated = figures.pop("calibrated")
    assert written.manifest.scores["router fit"] == json.loads(json.dumps(figures))
    assert written.manifest.calibration.point.accuracy == calibrated["accuracy"] >= figures["accuracy"]["explicit"] - 0.011
    assert len(written.calibration_outcomes()["confidence"]) == 30
    by_number = figures["accuracy by latents"]
    assert by_number[4] < by_number[8] < by_number[16] == figures["accuracy"]["latent"]
    assert 4 <= figures["latents chosen"]["mean"] < 16
    assert figures["latents chosen"]["accuracy"] > by_number[8] - 0.1
    assert written.probe().config.ladder == (4, 8)
    assert written.probe().config.classes
    assert 0 < figures["diffadapt"]["entropy"] < 1
    assert written.probe().config.targets == ("direct", "latent", "explicit", "tokens")


@pytest.mark.parametrize(
    ("direct", "explicit", "says"),
    [(0.0, 0.01, "Hardly an answer is right"), (1.0, 1.0, "without a chain"), (0.6, 0.5, "not better"), (0.5, 0.9, None)],
)
def test_what_a_router_cannot_do_is_said(direct: float, explicit: float, says: str | None) -> None:
    labels = {"direct": torch.full((8,), direct), "explicit": torch.full((8,), explicit), "tokens": torch.full((8,), 90.0)}
    labels["explicit"][0] = math.nan  # was not asked
    found = doubts(Observations({}, labels, {}, {}))
    assert len(found) == bool(says)
    assert all(says in one for one in found)


def test_a_floor_that_is_out_of_reach_is_told_and_what_is_best_is_taken() -> None:
    """The probe is sure of a cheap answer that is wrong, at whatever price; the others differ in what chains bring."""
    tokens = {Mode.DIRECT: 6.0, Mode.EXPLICIT: 250.0}
    outcomes = [
        Outcome(Scores(direct, None, explicit, 250.0), 0.9, {Mode.DIRECT: right, Mode.EXPLICIT: 1.0}, tokens)
        for direct, explicit, right in ((0.99, 0.9, 0.0), (0.8, 0.9, 1.0), (0.1, 0.9, 0.0), (0.1, 0.9, 0.0))
    ]
    calibration, said = calibrated(outcomes, None, 0.995, Mode.DIRECT, Mode.EXPLICIT)
    assert (calibration.point.accuracy, calibration.point.explicit_share) == (0.75, 0.5), "as right as the one that thinks most"
    assert "No setting of auto is right on 0.995" in said[0]
    assert "0.750" in said[0]
    assert calibrated(outcomes, None, 0.75, Mode.DIRECT, Mode.EXPLICIT)[1] == []


def test_rows_that_a_network_was_trained_on_fit_no_router() -> None:
    manifest = Bundle.load(DEMO_BUNDLE).manifest.model_copy(update={"trained_on": "traces.jsonl, rows.jsonl"})
    whole = FitConfig(bundle=DEMO_BUNDLE, task=TaskSpec("/data/rows.jsonl", whole=True))
    with pytest.raises(StageError, match=r"With --whole .* rows\.jsonl that the bundle's network was trained on"):
        check_rows(whole, manifest)
    check_rows(replace(whole, task=TaskSpec("others.jsonl", whole=True)), manifest)
    check_rows(replace(whole, task=TaskSpec("/data/rows.jsonl")), manifest)


def test_what_was_answered_is_kept_and_belongs_to_its_settings(tmp_path: Path) -> None:
    answers = Answers(torch.ones(2, 1), torch.tensor([[0.5], [math.nan]]), torch.ones(2, 1))
    Store(tmp_path, {"n": 2}).kept("answers-0", lambda: (answers, {4: torch.ones(2)}, None))
    found, ladder, nothing = Store(tmp_path, {"n": 2}).kept("answers-0", lambda: pytest.fail("was answered again"))
    torch.testing.assert_close(found.confidence, answers.confidence, equal_nan=True)
    assert ladder[4].tolist() == [1.0, 1.0]
    assert nothing is None
    with pytest.raises(StageError, match="other settings"):
        Store(tmp_path, {"n": 3})
