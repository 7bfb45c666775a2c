"""Any causal LM of transformers is a base: the architectures people have, small and random."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LATENT_TOKEN

PROMPTS = [[5, 6, 7, 11, 12], [8, 9]]


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama"])
def any_base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "qwen3":
        return tiny_base
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    sizes = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if request.param == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


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
