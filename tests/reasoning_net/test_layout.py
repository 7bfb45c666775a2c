from pathlib import Path

import pytest
from transformers import AutoTokenizer

from reasoning_net.errors import StageError
from reasoning_net.layout import LATENT_TOKEN, default_layout


@pytest.fixture
def tokenizer(tiny_base: Path):
    return AutoTokenizer.from_pretrained(tiny_base)


def test_the_base_s_own_token_stands_for_latents(tokenizer) -> None:
    layout = default_layout(tokenizer, len(tokenizer))
    assert layout.placeholder_token_id == tokenizer.convert_tokens_to_ids(LATENT_TOKEN)
    assert layout.before_latents == "<think>\n"


def test_a_template_that_opens_the_thinking_needs_no_second_tag(tokenizer) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"  # as DeepSeek-R1-Distill's
    layout = default_layout(tokenizer, len(tokenizer))
    assert layout.before_latents == ""
    assert layout.direct == "\n</think>\n\n"


def test_without_a_template_or_tags_one_sentence_says_so(tokenizer) -> None:
    tokenizer.chat_template = None
    with pytest.raises(StageError, match="no chat template"):
        default_layout(tokenizer, len(tokenizer))
    plain = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    vocabulary = {token: i for token, i in plain.get_vocab().items() if token != "</think>"}
    plain.get_vocab = lambda: vocabulary
    with pytest.raises(StageError, match="no </think> token"):
        default_layout(plain, len(plain))


def test_an_id_with_an_embedding_and_no_token_is_free(tokenizer) -> None:
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != LATENT_TOKEN}
    tokenizer.get_vocab = lambda: vocabulary
    assert default_layout(tokenizer, 600).placeholder_token_id == max(vocabulary.values()) + 1
    with pytest.raises(StageError, match="no unused token id"):
        default_layout(tokenizer, max(vocabulary.values()) + 1)
