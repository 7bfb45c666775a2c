import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reasoning_net.batches import Batch, Batches, Plan
from reasoning_net.curriculum import Curriculum
from reasoning_net.errors import StageError
from reasoning_net.layout import LayoutIds, default_layout
from reasoning_net.tasks import DemoTask, Example, Task

PLAN = Plan(
    batch_size=4, num_latents=4, max_latents=8, min_latents=1, num_rounds=1, nested_from=1.0, rest_share=0.0,
    distill_share=0.0, milestones="steps", hint_weight=0.5, hinted_until=0.5, max_prompt_tokens=1024, max_reply_tokens=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_base)


def layout_of(tokenizer: PreTrainedTokenizerBase) -> LayoutIds:
    return default_layout(tokenizer, len(tokenizer)).token_ids(tokenizer)


def drawn(
    tokenizer: PreTrainedTokenizerBase, n: int, plan: Plan = PLAN, first: int = 0, task: Task | None = None
) -> list[Batch]:
    stream = Batches(task or DemoTask(), tokenizer, layout_of(tokenizer), Curriculum(8, 8, 0.5), plan, seed="1", first=first)
    return list(itertools.islice(stream, n))


def same(left: Batch, right: Batch) -> bool:
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(left, right, strict=True))


def test_a_stream_goes_on_where_it_was_left(tokenizer: PreTrainedTokenizerBase) -> None:
    whole, later = drawn(tokenizer, 24), drawn(tokenizer, 8, first=16)
    assert all(map(same, whole[16:], later))
    assert not same(whole[0], whole[1])


def test_hints_end_before_the_run(tokenizer: PreTrainedTokenizerBase) -> None:
    curriculum = Curriculum(8, 8, 0.5)
    stream = iter(Batches(DemoTask(), tokenizer, layout_of(tokenizer), curriculum, PLAN, seed="1", first=0))
    assert float(next(stream).hint_weight) == 0.5
    curriculum.share = 0.5
    assert float(next(stream).hint_weight) == 0.0


def test_processes_draw_different_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = Batches(DemoTask(), tokenizer, layout_of(tokenizer), Curriculum(8, 8, 0.5), PLAN, seed="1", first=0)
    together = list(itertools.islice(DataLoader(stream, batch_size=None, num_workers=2), 16))
    assert sorted(batch.prompt_ids.sum().item() for batch in together) == sorted(
        batch.prompt_ids.sum().item() for batch in drawn(tokenizer, 16)
    )


def test_numbers_of_latents_are_drawn_in_the_nested_part(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = drawn(tokenizer, 16)
    assert {batch.computed for batch in whole} == {4}
    assert all(bool((batch.num_latents == 4).all()) for batch in whole)
    nested = drawn(tokenizer, 64, replace(PLAN, nested_from=0.0))
    assert {batch.computed for batch in nested} == {4, 8}
    numbers = {n for batch in nested for n in batch.num_latents.tolist()}
    assert numbers == {1, 2, 4, 8}
    assert all(int(batch.num_latents.min()) >= 4 for batch in nested if batch.computed == 8)


def test_the_rest_of_a_chain_ends_in_the_reply(tokenizer: PreTrainedTokenizerBase) -> None:
    (batch,) = drawn(tokenizer, 1, replace(PLAN, rest_share=1.0))
    assert batch.kind == "rest"
    for row in batch.targets.tolist():
        text = tokenizer.decode([token for token in row if token != -100])
        rest, _, reply = text.partition("</think>")
        assert "So the answer is" in rest or "word problem" in rest
        assert not rest.startswith("I need")
        assert reply.strip().endswith("<|im_end|>")


def test_chains_that_are_needed_and_missing_are_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    class NoChains(DemoTask):
        def examples(self, *_: object) -> "itertools.repeat[Example]":
            return itertools.repeat(Example([{"role": "user", "content": "1 + 1"}], "2", "2", 1, ""))

    with pytest.raises(StageError, match="--preset traces"):
        drawn(tokenizer, 1, replace(PLAN, distill_share=1.0), task=NoChains())
