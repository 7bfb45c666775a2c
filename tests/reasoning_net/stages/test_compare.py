import json
from dataclasses import replace
from pathlib import Path

import pytest

from reasoning_net.errors import StageError
from reasoning_net.stages import compare, grpo, sft
from reasoning_net.tasks import DemoTask, TaskSpec


class EvenTask(DemoTask):
    """Rewards what even a random base does half of the time."""

    def is_correct(self, reply: str, answer: str) -> bool:
        return len(reply) % 2 == 0


def test_a_comparison_fills_one_table_and_goes_on(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskSpec, "load", lambda self: EvenTask())
    sft.main(
        sft.SftConfig(
            model=str(tiny_base), output=tmp_path / "sft", steps=1, batch_size=4, num_latents=2, max_latents=2,
            conditioner="all", hidden_size=32, num_layers=1,
        )
    )  # fmt: skip
    recipe = compare.CompareGrpo(
        model=str(tiny_base), init=tmp_path / "sft", output=tmp_path / "out", steps=1, questions=4,
        sampling=grpo.GrpoSampling(6, 1.0, 1.0, 4), max_prompt_tokens=400,
    )  # fmt: skip
    config = compare.CompareConfig(recipe, ("8020+steer", "noise:0.1"), seeds=2, test_on=6, sft_seconds=1.0)
    table = compare.main(config)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["start", "1"], ["plain", "2"], ["8020+steer", "2"], ["noise:0.1", "2"]]
    assert (tmp_path / "out" / "table.md").read_text() == table + "\n"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(0 <= row["greedy"] <= 1 and 0 <= row["pass@1"] <= row["pass@4"] <= 1 and row["entropy"] > 0 for row in results)
    assert results[3]["tokens used"] < 1
    monkeypatch.setattr(grpo, "main", lambda _: pytest.fail("a finished run is not trained again"))
    assert compare.main(config) == table
    more = compare.main(replace(config, variants=("noise:0.1", "sft", "tip"), seeds=1))
    assert [line.split("|")[1].strip() for line in more.splitlines()[2:]] == ["start", "plain", "noise:0.1", "sft", "tip"]


def row(variant: str, seed: int, greedy: float) -> compare.Row:
    return {"variant": variant, "seed": seed, "greedy": greedy, "pass@1": 0.5, "pass@4": 0.6, "entropy": 1.0}


def test_what_works_stands_in_bold() -> None:
    plain = [row("plain", seed, 0.5 + seed / 10) for seed in range(3)]
    better = [row("better", seed, 0.52 + seed / 10 + (seed == 1) / 100) for seed in range(3)]  # on every seed
    lucky = [row("lucky", seed, 0.5 + seed / 10 + (seed == 1) / 5) for seed in range(3)]  # on one
    cells = {
        line.split("|")[1].strip(): line.split("|")[3].strip()
        for line in compare.markdown([*plain, *better, *lucky]).splitlines()
    }
    assert cells["better"].startswith("**0.623 ± ")
    assert cells["lucky"].startswith("0.667 ± ")
    assert cells["plain"].startswith("0.600 ± ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("luck", "no shaping luck"),
        ("noise:much", "noise:0.1"),
        ("policy", "policy:0.1"),
        ("tip:3", "tip:SHARE"),
        ("cure", "not applicable"),
    ],
)
def test_unknown_variants_say_what_there_is(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=reason):
        compare.variant(name, compare.CompareGrpo(output=tmp_path))
