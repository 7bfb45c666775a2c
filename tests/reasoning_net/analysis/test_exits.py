"""Answers that are forced along the demo's chains."""

import json
from pathlib import Path

import pytest

from reasoning_net.analysis.exits import ExitsConfig, main, read_chains, summarise
from reasoning_net.errors import StageError


@pytest.mark.usefixtures("one_engine")
def test_answers_along_chains_become_right_and_a_run_goes_on(tmp_path: Path) -> None:
    config = ExitsConfig(output=tmp_path, n=8, batch_size=4)
    said = main(config)
    path = tmp_path / "chains.jsonl"
    chains = read_chains(path)
    figures = json.loads((tmp_path / "exits.json").read_text())
    assert len(chains) == figures["questions"] == 8
    assert (tmp_path / "exits.png").stat().st_size > 5000
    assert "| oracle |" in said
    for chain in chains:
        assert len(chain.attempts) > 2
        at = [attempt.trial.at_tokens for attempt in chain.attempts]
        assert at == sorted(set(at))
        assert at[-1] <= chain.thinking_tokens < chain.tokens
        assert chain.expected_tokens
        assert all(0 < attempt.trial.least <= attempt.trial.mean <= 1.0001 for attempt in chain.attempts)
    # The whole chain's answer is the one that is forced after its last step; the model closes its thinking there, not before.
    assert sum(chain.attempts[-1].same for chain in chains) >= 7
    assert sum(chain.attempts[-1].closes for chain in chains) > sum(chain.attempts[0].closes for chain in chains)
    assert figures["oracle"]["tokens"] <= figures["whole"]["tokens"]
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:4]))
    assert summarise(chains[:4]) == summarise(read_chains(path))
    main(config)
    assert read_chains(path) == chains


def test_what_are_no_chains_is_said(tmp_path: Path) -> None:
    (tmp_path / "chains.jsonl").write_text('{"level": 1}\n')
    with pytest.raises(StageError, match="analyse exits"):
        read_chains(tmp_path / "chains.jsonl")
