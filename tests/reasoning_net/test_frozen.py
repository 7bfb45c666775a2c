"""Any causal LM of transformers is a base: the architectures people have, small and random."""

from pathlib import Path

import pytest
import torch

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LATENT_TOKEN
from tests.bases import SHAPES, write_base

PROMPTS = [[5, 6, 7, 11, 12], [8, 9]]


@pytest.fixture(scope="module", params=SHAPES)
def any_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(request.param, tmp_path_factory.mktemp(request.param))


def test_answers_do_not_depend_on_the_batch_and_checkpointing_changes_nothing(any_base: Path) -> None:
    latents = torch.randn(2, 4, 64, requires_grad=True)
    answers = torch.tensor([[5, 6], [7, 8]])
    results, gradients = [], []
    for base in (FrozenBase(any_base), FrozenBase(any_base, checkpointing=True)):
        layout = base.layout().token_ids(base.tokenizer)
        logits = base.answer_logits(base.read(PROMPTS), base.prefix(layout, latents), answers)
        for row in range(2):
            alone = base.answer_logits(
                base.read(PROMPTS[row : row + 1]), base.prefix(layout, latents[row : row + 1]), answers[row : row + 1]
            )
            torch.testing.assert_close(logits[row : row + 1], alone, rtol=1e-3, atol=1e-4)
        gradients.append(torch.autograd.grad(logits.square().sum(), latents)[0])
        results.append(logits.detach())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.model.parameters())
        assert not base.model.training
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-4)


def test_the_network_s_scale_and_the_logits_are_the_base_s_own(any_base: Path) -> None:
    """Of Gemma: embeddings are scaled as they enter, and logits are capped."""
    base = FrozenBase(any_base)
    ids = torch.arange(len(base.embed.weight))
    assert base.embedding_rms == pytest.approx(float(base.embed(ids).square().mean().sqrt()), rel=1e-3)
    states = base.read(PROMPTS[:1]).hidden_states
    torch.testing.assert_close(base.logits(states), base.model(torch.tensor(PROMPTS[:1])).logits, rtol=1e-3, atol=1e-4)


def test_greedy_generation_is_that_of_transformers(any_base: Path) -> None:
    base = FrozenBase(any_base)
    prompt = torch.tensor([PROMPTS[0]])
    expected = base.model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :].tolist()
    last = base.embed(prompt[:, -1:])
    first, second = base.generate(base.read([PROMPTS[0][:-1]]), last, 8, copies=2)
    end = base.tokenizer.eos_token_id
    assert first == second == (expected[: expected.index(end)] if end in expected else expected)


def test_a_missing_base_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="There is no model in"):
        FrozenBase(tmp_path)
    with pytest.raises(StageError, match="cannot be loaded"):
        FrozenBase(tmp_path / "nothing")


def test_the_reserved_token_is_part_of_the_demo_s_tokenizer(tiny_base: Path) -> None:
    assert LATENT_TOKEN in FrozenBase(tiny_base).tokenizer.get_vocab()
