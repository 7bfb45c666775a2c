"""Where the worker closes a chain: the rule, on made-up distributions of six tokens."""

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from server.engine.work import Close
from server.engine.worker.closings import UNASKED, Closings
from server.engine.worker.hooks import Row

WORD, OTHER, STOP, BREAK, BLANK, END = range(6)
START = 10


def row(index: int, written: int, work: Close) -> Row:
    """A request that has written so many tokens."""
    length = START + written
    return Row(f"request {index}", work, index, index, index + 1, length - 1, [0] * START)


def logits(likeliest: int, p_end: float) -> torch.Tensor:
    p = torch.full((6,), 0.01)
    p[END] = p_end
    p[likeliest] = 1 - p.sum() + p[likeliest]
    return p.log()


def walk(closings: Closings, steps: list[list[tuple[int, float]]], work: Close) -> list[list[int]]:
    """What each request samples, greedily: of each step, by request, the likeliest token and P(end)."""
    found = []
    for written, step in enumerate(steps):
        rows, of = [row(index, written, work) for index in range(len(step))], torch.stack([logits(*one) for one in step])
        closings.close(rows, of)
        sampled = of.argmax(-1, keepdim=True)
        values = LogprobsTensors(
            sampled.clone(), of.log_softmax(-1).gather(1, sampled), torch.ones(len(step), dtype=torch.long)
        )
        closings.keep(SamplerOutput(sampled.int(), values))
        asked = values.selected_token_ranks != UNASKED
        found.append([int(token) if was else -int(token) for token, was in zip(sampled[:, 0], asked, strict=True)])
    return found


def closings() -> Closings:
    return Closings(6, ends=[BREAK], blank=[BREAK, BLANK], device=torch.device("cpu"))


def test_a_chain_is_closed_once_at_the_end_of_a_step_where_the_model_would_rather_end_it() -> None:
    close = Close(START, END, 0.1, 0)
    steps = [[(WORD, 0.2)], [(BREAK, 0.2)], [(BLANK, 0.2)], [(WORD, 0.05)], [(WORD, 0.2)], [(BREAK, 0.2)], [(OTHER, 0.2)]]
    # In a step, before white space, and below 0.1 it goes on.
    assert walk(closings(), [*steps, [(BREAK, 0.2)], [(WORD, 0.2)]], close) == [
        [WORD], [BREAK], [BLANK], [WORD], [WORD], [BREAK], [-END], [BREAK], [WORD],
    ]  # fmt: skip


def test_nothing_is_closed_too_early_or_where_the_model_closes_it_itself() -> None:
    steps = [[(BREAK, 0.2)], [(WORD, 0.2)], [(BREAK, 0.2)], [(WORD, 0.2)]]
    assert walk(closings(), steps, Close(START, END, 0.1, 2)) == [[BREAK], [WORD], [BREAK], [-END]]
    assert walk(closings(), [[(BREAK, 0.2)], [(END, 0.9)]], Close(START, END, 0.1, 0)) == [[BREAK], [END]]


def test_each_request_has_a_state_of_its_own_and_says_how_likely_its_end_was() -> None:
    of, close = closings(), Close(START, END, 0.1, 0)
    assert walk(of, [[(BREAK, 0.2), (WORD, 0.2)], [(WORD, 0.2), (WORD, 0.2)]], close) == [[BREAK, WORD], [-END, WORD]]
    assert len(of) == 2
    of.forget("request 0")
    assert len(of) == 1
    values = LogprobsTensors(torch.tensor([[END]]), torch.zeros(1, 1), torch.ones(1, dtype=torch.long))
    walk(of, [[(BREAK, 0.2)]], close)
    of.close([row(0, 1, close)], logits(WORD, 0.25)[None])
    of.keep(SamplerOutput(torch.tensor([[END]], dtype=torch.int), values))
    assert abs(float(values.logprobs.exp()) - 0.25) < 1e-3
