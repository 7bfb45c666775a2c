"""Answers of many lengths to the demo's questions, and figures of answers that were made up."""

import json
import math
from pathlib import Path

import pytest

from reasoning_net.analysis.complexity import ComplexityConfig, main
from reasoning_net.analysis.complexity_figures import ALL, CHEAPEST, TEXT, Asked, Setting, markdown, summarise
from reasoning_net.bundle import Bundle
from router.complexity import Pair
from router.exits import Attempt, Chain, Trial
from router.policy import Limits


@pytest.mark.usefixtures("one_engine")
def test_questions_are_answered_in_every_way_and_a_run_goes_on(tmp_path: Path) -> None:
    config = ComplexityConfig(output=tmp_path, n=4, batch_size=2, num_latents=(4,), budgets=(32, 2000), rates=(0.3,))
    said = main(config)
    path = tmp_path / "answers.jsonl"
    written = path.read_text()
    for line in map(json.loads, written.splitlines()):
        tokens = {pair["way"]: pair["tokens"] for pair in line["pairs"]}
        assert set(tokens) == {"direct", "budget 32", "dropped 0.3", "latent 4", "latent 16", "exit", "explicit"}
        assert tokens["direct"] < tokens["latent 4"] < tokens["latent 16"] < tokens["budget 32"] < tokens["explicit"]
        assert tokens["dropped 0.3"] < tokens["explicit"] + 10
        assert 0 < line["confidence"] <= 1.0001
        assert line["scores"]["tokens"] > 50
    figures = json.loads((tmp_path / "complexity.json").read_text())
    assert figures["methods"]["explicit"]["right"] >= 0.75
    assert {"auto", "DiffAdapt", "latent 16", "budget 32", "exit, calibrated"} <= set(figures["methods"])
    assert figures["classifier"][TEXT]["all"]["accuracy"] > 0.8
    assert (tmp_path / "complexity.md").read_text() == said + "\n"
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("complexity.png", "levels.png"))
    path.write_text("".join(f"{line}\n" for line in written.splitlines()[:3]))
    assert main(config) == said
    assert path.read_text() == written


def asked(needs: int, *, lucky: bool, scores: dict[str, float] | None = None) -> Asked:
    """Right from so many tokens on, of 100; without thinking where it is lucky."""
    at = [Trial(tokens, "9", 5, 0.9, 0.9, 0.1) for tokens in (25, 45, 65, 85)]
    attempts = tuple(Attempt(trial, trial.at_tokens + 5 >= needs, True, 0.0) for trial in at)
    exits = [Pair("exit", one.trial.at_tokens + 5, one.right) for one in attempts]
    chain = Chain(needs // 30, True, 95, 100, 100.0, attempts)
    latent = [Pair("latent 16", 9.2, True)] if scores else []
    pairs = (Pair("direct", 6, lucky), Pair("budget 10", 15, False), *latent, *exits, Pair("explicit", 100, True))
    return Asked(chain.level, pairs, chain, scores or {}, 0.9)


def test_figures_without_a_bundle() -> None:
    of = [asked(30, lucky=False), asked(70, lucky=True), asked(90, lucky=False), asked(101, lucky=False)]
    figures = summarise(of, Setting(None, Limits(can_think_latent=False), "direct"))
    assert list(figures["classifier"]) == [TEXT]
    assert figures["classifier"][TEXT]["all"]["accuracy"] == pytest.approx(27 / 28, abs=1e-4)
    assert figures["classifier"][TEXT]["direct"]["predicted"] == 0.0
    assert figures["limit"][TEXT][-1] == (pytest.approx((30 + 70 + 90 + 100) / 4), 1.0)
    assert figures["slack"] == {TEXT: pytest.approx(1 - 290 / 400), CHEAPEST: pytest.approx(1 - 226 / 400)}
    assert figures["kendall"][TEXT]["steps"] == pytest.approx(5 / math.sqrt(6 * 5), abs=1e-3)
    assert figures["kendall"][TEXT]["tokens of explicit answers"] is None, "all are as long"
    explicit, budget = figures["methods"]["explicit"], figures["methods"]["budget 10"]
    assert (explicit["right"], explicit["realised"][TEXT]) == (1.0, 0.0)
    assert budget["right"] == 0.0
    assert budget["realised"][TEXT] == pytest.approx(0.85), "nothing right needs no tokens, and 15 were spent"
    assert "auto" not in figures["methods"]
    assert "| explicit | 100.0 | 1.000 |" in markdown(figures)


def test_latents_save_more_than_a_threshold_allows(bundle: Bundle) -> None:
    scores = {"direct": 0.1, "latent": 0.999, "explicit": 0.99, "tokens": 100.0}
    of = [asked(needs, lucky=False, scores=scores) for needs in (70, 90, 101)]
    figures = summarise(of, Setting(bundle.manifest.calibration, Limits(can_think_latent=True), "latent 16"))
    auto = figures["methods"]["auto"]
    assert (auto["tokens"], auto["right"]) == (9.2, 1.0)
    assert auto["realised"][ALL] > 1
    assert auto["realised"][CHEAPEST] == 1.0
    assert figures["classifier"][ALL]["latent"]["accuracy"] == 0.0
