import json
from pathlib import Path

from reasoning_net.stages.calibrate import calibrate
from reasoning_net.stages.evaluate_router import Asked, RouterEvalConfig, forecasts, main, relevant_logprob
from reasoning_net.tasks import DemoTask
from router.calibration import Confidence, Target
from router.policy import Mode
from tests.reasoning_net.stages.test_calibrate import outcomes


def test_a_signal_is_measured_by_how_it_ranks_answers_and_how_true_it_is() -> None:
    rows = outcomes(800, 0)
    calibration = calibrate(
        rows, Confidence(prior_weight=0.5, answer_weight=1.0, bias=0.0), Target(explicit_share=0.3), Mode.LATENT
    )
    figures = forecasts([Asked(o, level=i % 2, prompt_tokens=50) for i, o in enumerate(rows)], calibration, Mode.LATENT)
    assert 0.6 < figures["probe"]["AUROC"] < figures["probe and answer"]["AUROC"]
    assert figures["probe"]["calibration error"] < 0.06
    assert figures["prompt length"]["AUROC"] == 0.5  # all alike


def test_relevant_tokens_are_those_without_which_the_answer_is_another_one() -> None:
    said = [("Ann", -3.0), (" has", -2.0), (" 12", -0.5), (" pens", -1.0), (".", -4.0)]
    assert relevant_logprob(said, DemoTask()) == -0.5
    assert relevant_logprob([(" 1", -0.5), ("2", -1.5), (".", -9.0)], DemoTask()) == -1.0
    assert relevant_logprob([("No", -1.0), (" idea", -2.0)], DemoTask()) == -1.5, "of an answer without a number all of it"


async def test_over_http(server: str, tmp_path: Path) -> None:
    config = RouterEvalConfig(url=server, output=tmp_path, n=12, shares=(0.3,), concurrency=8)
    text = await main(config)
    assert "| auto, explicit_share 0.3 |" in text
    assert "| probe and answer |" in text
    assert "| sentence SAR (agreement of samples) |" in text
    report = json.loads((tmp_path / "router.json").read_text())
    assert report["live"]["auto"]["accuracy"] > 0.5
    assert report["tokens"]["curves"]["always explicit"][0][0] > report["tokens"]["curves"]["always latent"][0][0]
    for cost in ("tokens", "seconds"):
        assert (tmp_path / f"router_{cost}.png").read_bytes().startswith(b"\x89PNG")
