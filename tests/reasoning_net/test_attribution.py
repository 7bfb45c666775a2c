"""Gradients against what small changes of the inputs do, on the demo."""

import pytest
import torch
from torch import Tensor

from reasoning_net.attribution import INFLUENCE, PRODUCT, Attribution, attribute, attribute_latent, log_odds
from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_BUNDLE
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.rollouts import think

_STEP = 0.02
_CLOSE = {"rel": 0.05, "abs": 2e-3}
QUESTIONS = (
    "Ann has 5 pens. In January, she finds 3 pens. How many pens does Ann have now?",
    "Bob has 9 cards. In January, he loses 1 card. In February, he buys 4 cards. How many cards does Bob have now?",
)


@pytest.fixture(scope="module")
def prompts(base: FrozenBase) -> list[list[int]]:
    return [base.prompt_ids([{"role": "user", "content": question}]) for question in QUESTIONS]


def scaled(base: FrozenBase, ids: list[int], at: int, by: float) -> Tensor:
    embeddings = base.embed(torch.tensor([ids]))
    embeddings[0, at] *= 1 + by
    return embeddings


def test_log_odds() -> None:
    probabilities = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    odds = log_odds(probabilities.log(), torch.tensor([1, 0]))
    torch.testing.assert_close(odds, torch.tensor([0.7 / 0.3, 1.0]).log())


def test_what_a_token_rests_on_is_what_scaling_an_input_does(base: FrozenBase, prompts: list[list[int]]) -> None:
    """In a batch of sequences of different lengths; and nothing rests on what comes after it."""
    targets = [[[len(ids) - 1], [20, 22]] for ids in prompts]
    found = attribute(base, prompts, targets)
    for ids, of, one in zip(prompts, targets, found, strict=True):
        assert one.products.shape == (2, len(ids))
        assert not one.products[1, 22:].any()
        for at in (*one.products[1].topk(2).indices.tolist(), 12):
            odds = []
            for by in (_STEP, -_STEP):
                embeddings = scaled(base, ids, at, by)
                states = base.read_embeddings(embeddings, torch.ones(1, len(ids), dtype=torch.bool)).hidden_states[0]
                positions = torch.tensor(of[1])
                odds.append(log_odds(base.model.lm_head(states[positions - 1]), torch.tensor(ids)[positions]).sum())
            change = float(odds[0] - odds[1]) / (2 * _STEP)
            assert float(one.products[1, at]) == pytest.approx(abs(change), **_CLOSE)


@pytest.fixture(scope="module")
def net() -> ReasoningNet:
    net = Bundle.load(DEMO_BUNDLE).reasoning_net()
    assert net is not None
    return net.requires_grad_(False)


def test_what_an_answer_takes_from_the_question_through_a_latent_and_beside_it(
    base: FrozenBase, net: ReasoningNet, prompts: list[list[int]]
) -> None:
    layout = Bundle.load(DEMO_BUNDLE).manifest.layout.token_ids(base.tokenizer)
    answers = [base.tokenizer.encode(text, add_special_tokens=False) for text in ("Ann has 8 pens.", "Bob has 12 cards.")]
    found = attribute_latent(base, net, layout, 4, prompts, answers, [[2], [2]])
    for row, one in enumerate(found):
        assert one.rows.products.shape == (1, 4)
        assert one.through.products.shape == (4, len(prompts[row]))
        for at in {*one.beside.products[0].topk(1).indices.tolist(), *one.through.products[2].topk(1).indices.tolist()}:
            changes = changed(base, net, layout, prompts[row], answers[row], at)
            assert float(one.beside.products[0, at]) == pytest.approx(changes[0], **_CLOSE)
            assert float(one.through.products[2, at]) == pytest.approx(changes[1], **_CLOSE)
            assert float(one.all_through.products[0, at]) == pytest.approx(changes[2], **_CLOSE)


@torch.no_grad()
def changed(
    base: FrozenBase, net: ReasoningNet, layout: LayoutIds, ids: list[int], answer: list[int], at: int
) -> tuple[float, float, float]:
    """What scaling a token does beside the latents, by way of the third, and by way of all."""
    mask, written = torch.ones(1, len(ids), dtype=torch.bool), torch.tensor([answer])
    plain = base.read_ids(torch.tensor([ids]), mask)
    own = think(net, plain, 4)
    odds: list[list[float]] = [[], [], []]
    for by in (_STEP, -_STEP):
        prompt = base.read_embeddings(scaled(base, ids, at, by), mask)
        other = think(net, prompt, 4)
        third = torch.cat([own[:, :2], other[:, 2:3], own[:, 3:]], dim=1)
        for values, (read, latents) in zip(odds, ((prompt, own), (plain, third), (plain, other)), strict=True):
            logits = base.answer_logits(read.copy(), base.prefix(layout, latents), written)
            values.append(float(log_odds(logits[:, 2], written[:, 2])))
    return tuple(abs(up - down) / (2 * _STEP) for up, down in odds)  # type: ignore[return-value]


def test_pieces_add_up_products_and_take_the_norm_of_norms() -> None:
    of = Attribution(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 4.0, 5.0]]))
    assert of.over([range(2), range(2, 3)], PRODUCT).tolist() == [[3.0, 3.0]]
    assert of.over([range(2), range(2, 3)], INFLUENCE).tolist() == [[5.0, 5.0]]
    assert of.over([], PRODUCT).shape == (1, 0)
