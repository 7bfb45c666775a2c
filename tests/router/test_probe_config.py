from router.policy import Scores
from router.probe_config import rung, scores_of


def test_outputs_become_scores_a_question() -> None:
    outputs = {"latent": [0.9, 0.4], rung(8): [0.8, 0.3], "tokens": [90.0, 200.0], rung(4): [0.7, 0.1]}
    assert scores_of(outputs) == [
        Scores(latent=0.9, tokens=90.0, by_latents=((4, 0.7), (8, 0.8))),
        Scores(latent=0.4, tokens=200.0, by_latents=((4, 0.1), (8, 0.3))),
    ]
