from dataclasses import replace
from pathlib import Path

import pytest

from reasoning_net.stages import grpo, sft, sweep


def test_a_sweep_fills_one_table_and_keeps_what_is_finished(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep.SweepSft(model=str(tiny_base), output=tmp_path, steps=2, batch_size=8, hidden_size=32, num_layers=1)
    second = grpo.GrpoConfig(
        init=tmp_path, output=tmp_path, steps=1, questions=4, sampling=grpo.GrpoSampling(6, 1.0, 1.0, 2),
        backend="transformers", evaluate_on=0,
    )  # fmt: skip
    config = sweep.SweepConfig(first, second, num_latents=(4, 8), conditioners=("last",), test_on=8)
    table = sweep.main(config)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        [str(n), conditioner, stage] for n in (4, 8) for conditioner in ("last",) for stage in ("SFT", "SFT + GRPO")
    ]
    assert (tmp_path / "table.md").read_text() == table + "\n"

    def train_again(_: object) -> None:
        pytest.fail("a finished variant is not trained again")

    monkeypatch.setattr(sft, "main", train_again)
    monkeypatch.setattr(grpo, "main", train_again)
    assert sweep.main(config) == table
    assert sweep.main(replace(config, num_latents=(4,))).count("\n") == 3
