"""Micro-batches: a long prompt does not pad everybody else's."""

import torch

from server.engine.work import Read
from server.engine.worker.networks import MAX_PADDED_TOKENS
from server.engine.worker.read import Question, micro_batches


def questions(*lengths: int) -> list[Question]:
    return [Question(str(i), Read(str(i), 1), torch.zeros(1, n, 2), [0] * n) for i, n in enumerate(lengths)]


def test_no_batch_pads_beyond_the_bound_and_nothing_is_lost() -> None:
    asked = questions(30, 7, 500, 8, 9, 12, 2000, 11)
    batches = list(micro_batches(asked, max_padded_tokens=64))
    assert sorted(q.request_id for batch in batches for q in batch) == sorted(q.request_id for q in asked)
    for batch in batches:
        longest = max(question.length for question in batch)
        assert len(batch) == 1 or len(batch) * longest <= 64
    assert len(batches) == 4  # 7 8 9 11 12 | 30 | 500 | 2000


def test_short_prompts_stay_together() -> None:
    assert [len(batch) for batch in micro_batches(questions(*[20] * 64), MAX_PADDED_TOKENS)] == [64]
