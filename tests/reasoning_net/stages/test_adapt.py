"""`latentserve adapt`: its plan, its bookkeeping, what it says. All of its stages run in tests/long/adapt.py."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import BundleError, StageError
from reasoning_net.gains import Asked, Gains
from reasoning_net.recipe import Costs, Recipe
from reasoning_net.stages import adapt, look, progress
from reasoning_net.stages.adapt import AdaptConfig, Plan, data_of, quantile, settle, sft_config, splits_of
from reasoning_net.stages.progress import Progress
from reasoning_net.tasks import DemoTask, Task, TaskSpec

ASKED = [Asked(100 + 10 * i, float(i % 4 == 0), 6, 1.0, 200 + 20 * i, True, 8, 0.01, 0.2) for i in range(8)]


def count(path: Path) -> int:
    """A stage that tells how often it ran."""
    runs = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(runs))
    return runs


def plan(config: AdaptConfig, task: Task) -> Plan:
    base = look.look(str(DEMO_MODEL))
    data, costs = data_of(ASKED, task), Costs(0.05, 1500.0, 0.01)
    found = Plan(data, costs, Recipe.of(base.shape, data, base.machine, costs), Gains.of(ASKED))
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "plan.json").write_text(json.dumps(asdict(found)))
    return found


def test_a_look_at_the_demo_says_what_it_is() -> None:
    base = look.look(str(DEMO_MODEL))
    said = " ".join(base.sentences())
    assert "Qwen3ForCausalLM, 3 million parameters, 192 wide, 6 layers deep" in said
    assert "Think tags: tokens of their own; token 3 is reserved for latents." in said
    assert "Its tokenizer and our layouts agree." in said
    assert base.ends_chains
    with pytest.raises(BundleError, match="Fetch it first"):
        look.look("owner/nothing")


def test_a_base_without_memory_for_it_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "free_memory", lambda _: 2**20)
    with pytest.raises(StageError, match=r"needs at least 0\.0 GiB, and 0\.0 GiB are free here"):
        look.look(str(DEMO_MODEL))


def test_a_stage_that_is_done_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "apart", lambda _, function, *arguments: function(*arguments))
    first = Progress(tmp_path)
    first.expect({"counting": 90.0, "training": 7200.0})
    assert first.stage("counting", count, tmp_path / "runs") == 1
    assert "counting: 2 stages to go, about 2.0 h left of all" in capsys.readouterr().err
    again = Progress(tmp_path)
    again.expect({"counting": 90.0, "training": 7200.0})
    assert again.stage("counting", count, tmp_path / "runs") == 1
    assert "counting" not in capsys.readouterr().err
    (tmp_path / "done" / "counting.json").unlink()  # killed before it was done
    assert again.stage("counting", count, tmp_path / "runs") == 2


def test_a_directory_belongs_to_its_base_data_and_settings(tmp_path: Path) -> None:
    config = AdaptConfig(output=tmp_path, task=TaskSpec("rows.jsonl"))
    settle("owner/base", config)
    settle("owner/base", replace(config, probe=True))  # the look first, then what was asked for
    settle("owner/base", replace(config, latents=True, grpo=3, anyway=True))
    with pytest.raises(StageError, match=r"seed was 0, is 1.*Give another --output"):
        settle("owner/base", replace(config, seed=1))
    with pytest.raises(StageError, match="model was owner/base, is owner/other"):
        settle("owner/other", config)


def test_a_plan_is_made_once(tmp_path: Path) -> None:
    """Speed and memory are others at another time, and the figures must not be."""
    config, task = AdaptConfig(output=tmp_path), DemoTask()
    made = plan(config, task)
    assert adapt.plan_of(look.look(str(DEMO_MODEL)), task, config, Progress(tmp_path)) == made


def test_lengths_come_from_the_sample(tmp_path: Path) -> None:
    data = data_of(ASKED, DemoTask())
    assert (data.usual_prompt_tokens, data.prompt_tokens, data.chain_tokens, data.longest_chain_tokens) == (130, 170, 260, 340)
    assert data.train is None
    assert [quantile([3, 1, 2], share) for share in (0.3, 0.5, 0.99)] == [1, 2, 3]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(60)))
    task = TaskSpec(str(rows)).load()
    data = data_of(ASKED, task)
    assert splits_of("probe", task) == ("validation", "train")  # nothing is trained on them
    assert data.train + data.held_out > 40 > data.held_out
    assert splits_of("latents", task) == splits_of("probe", DemoTask()) == ("validation",)


def test_too_few_rows_for_a_router_are_told_before_hours_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(60)))
    config = AdaptConfig(output=tmp_path, task=TaskSpec(str(rows)), latents=True)
    plan(config, config.task.load())
    monkeypatch.setattr(adapt, "made", lambda *_: pytest.fail("it trained"))
    with pytest.raises(StageError, match="A router takes 40 questions that nothing was trained on, and there are"):
        adapt.main(str(DEMO_MODEL), config)


def test_rows_are_learnt_from_the_bases_own_replies_and_the_demo_from_its_own(tmp_path: Path) -> None:
    config, task = AdaptConfig(output=tmp_path), DemoTask()
    recipe = plan(config, task).recipe
    learning = sft_config("base", recipe.quick(), config, task)
    assert learning.task == config.task
    assert learning.save_every < learning.steps  # a short run that is killed has something to go on from
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    of_rows = sft_config("base", recipe, replace(config, task=TaskSpec(str(rows))), TaskSpec(str(rows)).load())
    assert of_rows.task.source == str(tmp_path / "traces" / "traces.jsonl")
    assert of_rows.task.preset == "traces"


def test_nothing_is_trained_where_nothing_can_be_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AdaptConfig(output=tmp_path, probe=True)
    found = plan(config, DemoTask())
    useless = replace(found, gains=Gains.of([replace(one, explicit_right=0.0) for one in ASKED]))
    (tmp_path / "plan.json").write_text(json.dumps(asdict(useless)))
    monkeypatch.setattr(adapt, "made", lambda *_: pytest.fail("it trained"))
    with pytest.raises(StageError, match="nothing to gain"):
        adapt.main(str(DEMO_MODEL), config)
    assert "Go on with --probe or --latents" in adapt.main(str(DEMO_MODEL), replace(config, probe=False))
