import pytest
from pydantic import ValidationError

from router.policy import Scores
from router.probe_config import ProbeConfig, rung, scores_of


def test_outputs_become_scores_a_question() -> None:
    outputs = {"latent": [0.9, 0.4], rung(8): [0.8, 0.3], "tokens": [90.0, 200.0], rung(4): [0.7, 0.1]}
    assert scores_of(outputs) == [
        Scores(latent=0.9, tokens=90.0, by_latents=((4, 0.7), (8, 0.8))),
        Scores(latent=0.4, tokens=200.0, by_latents=((4, 0.1), (8, 0.3))),
    ]


def test_classes_are_told_from_the_last_state() -> None:
    config = ProbeConfig(base_hidden_size=4, features=("mean", "last"), layers=(1, 2), classes=True)
    assert config.last_state == slice(12, 16)
    for options in ({"features": ("mean",)}, {"hidden_size": 0}):
        with pytest.raises(ValidationError, match="classes need"):
            ProbeConfig(base_hidden_size=4, classes=True, **options)
