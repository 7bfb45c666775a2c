import json
from pathlib import Path

import pytest

from reasoning_net.errors import StageError
from reasoning_net.stages.evaluate import Arm, EvalConfig, Graded, main, summarise
from reasoning_net.tasks import LEARNT, TaskSpec


def test_arms() -> None:
    assert Arm.parse("latent:64").body() == {"mode": "latent", "num_latent_tokens": 64}
    assert Arm.parse("explicit:128").body() == {"mode": "explicit", "thinking_token_budget": 128}
    assert Arm.parse("soft:5").body() == {"mode": "soft", "soft": {"k": 5}}
    assert Arm.parse("soft:lead").body() == {"mode": "soft", "soft": {"switch": "lead"}}
    assert Arm.parse("explicit:glimp").body() == {"mode": "explicit", "exit": False, "helper": {"policy": "glimp"}}
    assert Arm.parse("auto").body() == {"mode": "auto"}
    for wrong in ("fast", "latent:x", "direct:3", "auto:exit"):
        with pytest.raises(StageError, match="is no arm"):
            Arm.parse(wrong)


def record(seed: int, correct: list[bool]) -> Graded:
    return Graded("latent", seed, "counting", 1, correct, 6.0, 0.1, "latent", 0.5)


def test_pass_at_k_and_errors_over_seeds() -> None:
    summary = summarise(
        [record(0, [True, False]), record(0, [False, False]), record(1, [True, True]), record(1, [True, False])]
    )
    assert summary["latent"]["pass@1"] == 0.5  # 1/4 and 3/4
    assert summary["latent"]["pass@1 error"] == 0.25
    assert summary["latent"]["pass@2"] == 0.75  # 1/2 and 1
    single = summarise([record(0, [True]), record(0, [False])])
    assert single["latent"]["pass@1 error"] == pytest.approx(0.3536, abs=1e-4)


async def test_a_run_over_http_writes_tables_plots_and_records(server: str, tmp_path: Path) -> None:
    arms = tuple(map(Arm.parse, ("direct", "latent:64", "explicit:30", "explicit")))
    table = await main(EvalConfig(server, arms, n=8, samples=4, temperature=0.6, top_p=0.95, seeds=2, output=tmp_path))
    assert "pass@4" in table
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"direct", "latent (64)", "explicit (30)", "explicit"}
    assert summary["explicit (30)"]["tokens"] < 60 < summary["explicit"]["tokens"]
    assert summary["direct"]["tokens"] < 20
    for figures in summary.values():
        assert figures["pass@1"] <= figures["pass@4"]
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == 4 * 2 * 8
    for plot in ("accuracy_tokens.png", "accuracy_level.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


async def test_the_same_sums_in_other_words_and_orders(server: str, tmp_path: Path) -> None:
    config = EvalConfig(server, (Arm("latent"),), task=TaskSpec(LEARNT), n=8, remap=True, orders=2, output=tmp_path)
    text = await main(config)
    assert "about other people and things" in text
    remap, orders = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("remap", "orders"))
    assert remap["latent"]["as they are"] == 1.0
    assert remap["latent"]["lost"] == pytest.approx(1.0 - remap["latent"]["about others"])
    assert 0 < orders["latent"]["questions"] <= 8
    assert (tmp_path / "remap.md").read_text() in text + "\n"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    with pytest.raises(StageError, match="--columns renamed"):
        await main(EvalConfig(server, task=TaskSpec(str(rows), whole=True), remap=True))


async def test_a_refusal_is_said_in_the_server_s_words(server: str) -> None:
    with pytest.raises(StageError, match="num_latent_tokens must be between"):
        await main(EvalConfig(server, (Arm("latent", 9999),), n=2))
    with pytest.raises(StageError, match="give --temperature"):
        await main(EvalConfig(server, (Arm("latent"),), samples=4))
