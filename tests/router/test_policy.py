import math

import pytest

from router.policy import Mode, Scores, Thresholds, decide

PROBE = Thresholds(latent=0.8)


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.LATENT, Mode.EXPLICIT])
def test_a_named_mode_is_never_overruled(mode: Mode) -> None:
    decision = decide(mode, Scores(latent=0.0), PROBE, can_think_latent=True)
    assert (decision.mode, decision.reason) == (mode, "requested")


@pytest.mark.parametrize(
    ("scores", "thresholds", "can_think_latent", "mode", "reason"),
    [
        (Scores(latent=0.8), PROBE, True, Mode.LATENT, "probe_confident"),
        (Scores(latent=0.79), PROBE, True, Mode.EXPLICIT, "probe_doubtful"),
        (Scores(direct=0.95, latent=0.99), Thresholds(direct=0.9, latent=0.8), True, Mode.DIRECT, "probe_confident"),
        (Scores(direct=0.5, latent=0.9), Thresholds(direct=0.9, latent=0.8), True, Mode.LATENT, "probe_confident"),
        (Scores(direct=0.95), Thresholds(direct=0.9), False, Mode.DIRECT, "probe_confident"),
        (Scores(direct=0.5, latent=0.99), Thresholds(direct=0.9, latent=0.8), False, Mode.EXPLICIT, "probe_doubtful"),
        (Scores(latent=math.nan), PROBE, True, Mode.EXPLICIT, "score_not_finite"),
        (Scores(latent=math.inf), PROBE, True, Mode.EXPLICIT, "score_not_finite"),
        (Scores(entropy=0.1), Thresholds(entropy=0.5), True, Mode.LATENT, "entropy_low"),
        (Scores(entropy=0.1), Thresholds(entropy=0.5), False, Mode.DIRECT, "entropy_low"),
        (Scores(entropy=0.6), Thresholds(entropy=0.5), False, Mode.EXPLICIT, "entropy_high"),
        (Scores(entropy=math.nan), Thresholds(entropy=0.5), False, Mode.EXPLICIT, "score_not_finite"),
        (Scores(), PROBE, True, Mode.EXPLICIT, "no_score"),
    ],
)
def test_auto(scores: Scores, thresholds: Thresholds, can_think_latent: bool, mode: Mode, reason: str) -> None:
    decision = decide(Mode.AUTO, scores, thresholds, can_think_latent=can_think_latent)
    assert (decision.mode, decision.reason) == (mode, reason)
