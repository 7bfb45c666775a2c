"""The stages that run on the vLLM engine, with the demo's base: rollouts, traces, trajectories."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.analysis import trajectory
from reasoning_net.bundle import Bundle, fingerprint
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.latent_noise import drawn
from reasoning_net.rollouts import (
    Sampling,
    TransformersRollouts,
    VllmRollouts,
    greedy_accuracy,
    latent_replies,
    noisy_replies,
    think,
)
from reasoning_net.stages import traces
from reasoning_net.step_probe import StepMlp, StepProbe, StepProbeConfig
from reasoning_net.tasks import DemoTask, TaskSpec
from server.settings import DEMO_MODEL


@pytest.fixture(scope="module")
def engine(base: FrozenBase, bundle: Bundle) -> Iterator[VllmRollouts]:
    engine = VllmRollouts(str(DEMO_MODEL), bundle.manifest.layout.token_ids(base.tokenizer), max_model_len=1024)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(base: FrozenBase) -> list[list[int]]:
    examples = DemoTask().examples(5, "test")
    return [base.prompt_ids(next(examples).messages) for _ in range(16)]


def test_greedy_replies_are_those_of_transformers(
    engine: VllmRollouts, base: FrozenBase, bundle: Bundle, prompts: list[list[int]]
) -> None:
    reference = TransformersRollouts(base, bundle.manifest.layout.token_ids(base.tokenizer))
    ours, theirs = (
        latent_replies(bundle.reasoning_net(), base, backend, prompts, 16, Sampling()) for backend in (engine, reference)
    )
    assert [reply.text for (reply,) in ours] == [reply.text for (reply,) in theirs]
    assert [reply.token_ids for (reply,) in ours] == [reply.token_ids for (reply,) in theirs]
    thinking = Sampling(max_tokens=60)
    ours, theirs = (backend.from_tokens(prompts[:4], thinking) for backend in (engine, reference))
    assert [reply.token_ids for (reply,) in ours] == [reply.token_ids for (reply,) in theirs]
    assert not any(reply.finished for (reply,) in ours)


def test_samples_of_a_question_differ_and_a_seed_repeats_them(
    engine: VllmRollouts, base: FrozenBase, bundle: Bundle, prompts: list[list[int]]
) -> None:
    reference = TransformersRollouts(base, bundle.manifest.layout.token_ids(base.tokenizer))
    sampling = Sampling(temperature=1.5, copies=8, seed=3)
    latents = torch.randn(len(prompts), 16, base.hidden_size) * 0.05
    for backend in (engine, reference):
        first, again = (backend.from_latents(prompts, latents, sampling) for _ in range(2))
        assert [len(group) for group in first] == [8] * len(prompts)
        assert first == again
        assert len({reply.text for group in first for reply in group}) > 8
        assert backend.from_latents(prompts, latents, replace(sampling, seed=4)) != first


def test_with_noise_each_copy_is_written_after_latents_of_its_own(
    engine: VllmRollouts, base: FrozenBase, bundle: Bundle, prompts: list[list[int]]
) -> None:
    """Greedy copies differ by nothing but their latents."""
    reference = TransformersRollouts(base, bundle.manifest.layout.token_ids(base.tokenizer))
    with torch.no_grad():
        latents = think(bundle.reasoning_net(), base.read(prompts[:4]), 4)
    noise, _ = drawn(latents, 1.0, 3, seed=0)
    for backend in (engine, reference):
        noisy = noisy_replies(backend, prompts[:4], latents, noise, Sampling(copies=3))
        assert len({reply.text for group in noisy for reply in group}) > 4
        for copy in range(3):
            alone = backend.from_latents(prompts[:4], latents + noise[:, copy], Sampling())
            assert [group[copy] for group in noisy] == [reply for (reply,) in alone]


def test_the_demo_s_network_answers_better_than_chance(base: FrozenBase, bundle: Bundle, engine: VllmRollouts) -> None:
    task = DemoTask()
    stream = task.examples(11, "test", 3)
    examples = [next(stream) for _ in range(60)]
    assert greedy_accuracy(bundle.reasoning_net(), base, engine, task, examples, 16) > 0.5


def test_traces_resume_behind_the_last_full_batch(
    engine: VllmRollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "VllmRollouts", lambda *_: engine)
    config = traces.TracesConfig(output=tmp_path, split="validation", n=12, batch_size=4)
    counts = traces.main(config)
    assert counts["questions"] == 12
    assert counts["correct"] > 0.8
    whole = (tmp_path / "traces.jsonl").read_text()
    # Killed while it wrote the last batch.
    (tmp_path / "traces.jsonl").write_text(whole[: whole.index("\n", len(whole) * 3 // 4) + 20])
    traces.main(config)
    assert (tmp_path / "traces.jsonl").read_text() == whole
    assert len(list((tmp_path / "hidden_states").iterdir())) == 3
    read = traces.read_traces(tmp_path / "traces.jsonl")
    assert all(trace.num_tokens > 40 and "So the answer is" in trace.reasoning for trace in read if trace.correct)
    # What was traced is a data set.
    task = TaskSpec(str(tmp_path / "traces.jsonl"), "traces", whole=True).load()
    example = next(task.examples(0, "train"))
    assert task.is_correct(example.reply, example.answer)


def test_traces_of_the_most_important_steps(
    engine: VllmRollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(traces, "VllmRollouts", lambda *_: engine)
    config = StepProbeConfig(base=fingerprint(str(DEMO_MODEL)), sentences=True)
    StepProbe(config, StepMlp(config.features, config.hidden_size)).save(tmp_path / "importance.safetensors")
    whole = traces.TracesConfig(output=tmp_path / "whole", split="validation", n=4)
    kept = replace(whole, output=tmp_path / "kept", compress=0.3, probe=tmp_path / "importance.safetensors")
    traces.main(whole)
    traces.main(kept)
    pairs = zip(*(traces.read_traces(one.output / "traces.jsonl") for one in (whole, kept)), strict=True)
    for before, after in pairs:
        assert 0 < len(after.reasoning) < 0.7 * len(before.reasoning)
        assert replace(after, reasoning=before.reasoning) == before
    with pytest.raises(StageError, match="belong together"):
        traces.main(replace(kept, probe=None))


def test_the_most_natural_of_several_chains(engine: VllmRollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "VllmRollouts", lambda *_: engine)
    sampling = traces.TracesSampling(temperature=1.0)
    config = traces.TracesConfig(output=tmp_path, split="validation", n=6, batch_size=3, best_of=4, sampling=sampling)
    counts = traces.main(replace(config, select="aslec-drop"))
    read, scored = traces.read_traces(tmp_path / "traces.jsonl"), traces.read_scores(tmp_path / "selection.jsonl")
    assert [len(group) for group in scored] == [4] * 6
    assert sum(trace.correct for trace in read) >= 5
    for group in scored:
        assert len({one.drop for one in group}) > 1  # chains that differ
        assert all(0.03 < one.density < 0.3 for one in group)
        assert all(min(one.first, one.drop) <= one.mean <= max(one.first, one.drop) for one in group)
    assert -1 <= counts["step length and mean"] <= 1
    # Killed while it wrote: the same chains are chosen again, and scored once.
    (tmp_path / "traces.jsonl").write_text("".join((tmp_path / "traces.jsonl").read_text().splitlines(keepends=True)[:4]))
    traces.main(replace(config, select="aslec-drop"))
    assert traces.read_traces(tmp_path / "traces.jsonl") == read
    assert traces.read_scores(tmp_path / "selection.jsonl")[:3] == scored[:3]
    assert len(traces.read_scores(tmp_path / "selection.jsonl")) == 6
    with pytest.raises(StageError, match="--temperature"):
        traces.main(replace(config, sampling=traces.TracesSampling()))


def test_trajectory_drops_tokens_and_steps(engine: VllmRollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "VllmRollouts", lambda *_: engine)
    monkeypatch.setattr(trajectory, "VllmRollouts", lambda *_: engine)
    traces.main(traces.TracesConfig(output=tmp_path, split="validation", n=16, batch_size=16))
    config = trajectory.TrajectoryConfig(traces=tmp_path / "traces.jsonl", output=tmp_path / "out", rates=(0.0, 0.5), seeds=2)
    table = trajectory.main(config)
    assert "| tokens |" in table
    assert "| steps |" in table
    figures = json.loads((tmp_path / "out" / "trajectory.json").read_text())["accuracy"]
    assert figures["tokens"][0][1] > 0.8  # nothing dropped
    assert figures["tokens"][1][1] < figures["tokens"][0][1]
    assert (tmp_path / "out" / "trajectory.png").read_bytes().startswith(b"\x89PNG")


def test_no_finished_chain_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("")
    with pytest.raises(StageError, match="no finished chain"):
        trajectory.main(trajectory.TrajectoryConfig(traces=tmp_path / "traces.jsonl", output=tmp_path))
