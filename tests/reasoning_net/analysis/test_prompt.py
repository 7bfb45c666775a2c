"""Questions of the demo with tokens left out."""

import json
from pathlib import Path

import torch

from reasoning_net.analysis.prompt import CHANCE, EXPLICIT, LATENT, SCORES, PromptConfig, main, without
from reasoning_net.tasks import TaskSpec


def test_the_lowest_scores_go_and_the_order_stays() -> None:
    scores = torch.tensor([0.0, 0.9, 0.1, 0.8, 0.2, 0.0])
    assert without([7, 1, 2, 3, 4, 8], range(1, 5), scores, 0.5) == [7, 1, 3, 8]
    assert without([7, 1, 2, 3, 4, 8], range(1, 5), scores, 0.75) == [7, 1, 3, 4, 8]
    assert without([7, 1, 2, 3, 4, 8], range(1, 5), scores, 0.0) == [7, 1, 8], "one token stays"
    assert without([7, 1, 2, 3, 4, 8], range(1, 5), scores, 1.0) == [7, 1, 2, 3, 4, 8]


def test_questions_are_cut_and_a_run_goes_on(tmp_path: Path) -> None:
    task = TaskSpec("demo:counting@2")
    config = PromptConfig(output=tmp_path, task=task, n=2, keep=(0.5,), batch_size=1, backend="transformers", seed=3)
    said = main(config)
    path = tmp_path / "answers.jsonl"
    lines = path.read_text().splitlines()
    for line in map(json.loads, lines):
        whole, *cut = line["answers"]
        assert whole["right"][EXPLICIT]
        assert whole["right"][LATENT]
        assert whole["numbers"] == 1
        assert [one["score"] for one in cut] == list(SCORES)
        assert cut[0]["score"] == CHANCE
        assert not any(one["right"][EXPLICIT] and one["numbers"] < 0.5 for one in cut)
    assert "| 50% | gradient × input |" in said
    assert (tmp_path / "prompt.png").stat().st_size > 5000
    path.write_text(f"{lines[0]}\n")
    assert main(config) == said
