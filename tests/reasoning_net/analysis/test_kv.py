"""Chains that are written from part of their cache, on the demo's base."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from reasoning_net.analysis.kv import WHOLE, KvConfig, Writer, main
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.tasks import TaskSpec


def test_the_whole_cache_is_what_generation_reads_and_half_of_it_is_not(tmp_path: Path) -> None:
    config = KvConfig(output=tmp_path, n=2, budget=(0.3, 1.0), max_tokens=60, batch_size=1)
    said = main(config)
    path = tmp_path / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        by_policy = {(one["policy"], one["budget"]): one for one in line["written"]}
        assert by_policy[WHOLE, 1.0]["tokens"] == 60
        assert by_policy["H2O", 1.0]["same"], "nothing is dropped where everything fits"
        assert by_policy["H2O", 0.3]["cached"] < by_policy["H2O", 1.0]["cached"]
        assert not by_policy["chance", 0.3]["same"]
        assert line["spells"]["longest_gap_p80"] > 1
    assert "| LazyEviction |" in said
    assert (tmp_path / "kv.png").stat().st_size > 5000
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:1]))
    assert main(config) == said


def test_greedy_tokens_are_those_of_generation(base: FrozenBase) -> None:
    task, eager = TaskSpec().load(), FrozenBase(DEMO_MODEL)
    eager.model.set_attn_implementation("eager")
    layout = base.layout().token_ids(base.tokenizer)
    prompts = [base.prompt_ids(e.messages) for e in islice(task.examples(3, "test"), 3)]
    writer = Writer(eager, layout, task, KvConfig(output=Path("unused"), max_tokens=40))
    opening = torch.tensor([[prompt[-1]] for prompt in prompts])
    wanted = base.generate(base.read([prompt[:-1] for prompt in prompts]), base.embed(opening), 40)
    assert writer.decoded(prompts).tokens == wanted


def test_questions_without_answers_are_refused(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": ""}\n')
    with pytest.raises(StageError):
        main(KvConfig(output=tmp_path, task=TaskSpec(str(rows))))
