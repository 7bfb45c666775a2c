import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from reasoning_net.errors import StageError
from reasoning_net.layout import LATENT_TOKEN, NO_THINKING, Layout, LayoutIds, default_layout
from tests.bases import Tags, write_base


@pytest.fixture
def tokenizer(tiny_base: Path):
    return AutoTokenizer.from_pretrained(tiny_base)


def without(tokenizer, *tokens: str, **others: int):
    """The tokenizer with another vocabulary, as far as a layout looks at it."""
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token not in tokens} | others
    tokenizer.get_vocab = lambda: vocabulary
    return tokenizer


def test_the_base_s_own_token_stands_for_latents(tokenizer) -> None:
    layout = default_layout(tokenizer, len(tokenizer))
    assert layout.placeholder_token_id == tokenizer.convert_tokens_to_ids(LATENT_TOKEN)
    assert layout.before_latents == "<think>\n"


def test_a_template_that_opens_the_thinking_needs_no_second_tag(tokenizer) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"  # as DeepSeek-R1-Distill's
    layout = default_layout(tokenizer, len(tokenizer))
    assert layout.before_latents == ""
    assert layout.direct == "\n</think>\n\n"


def test_behind_a_line_that_the_template_ends_none_is_begun(tokenizer) -> None:
    """Two line breaks in a row are one token, which X does not end with."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<think>\\n' }}"
    layout = default_layout(tokenizer, len(tokenizer))
    asked = tokenizer.encode("?<think>\n", add_special_tokens=False)
    joined = tokenizer.encode("?<think>\n" + layout.direct, add_special_tokens=False)
    assert [*asked, *layout.token_ids(tokenizer).direct] == joined


def test_a_template_that_wants_more_than_a_question_stops_nothing(tokenizer) -> None:
    expected = default_layout(tokenizer, len(tokenizer))
    tokenizer.chat_template = "{{ raise_exception('Only with a system prompt.') }}"
    assert default_layout(tokenizer, len(tokenizer)) == expected
    assert expected.token_ids(tokenizer).direct


def test_a_template_that_closes_the_thinking_wants_none(tokenizer) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n\n</think>\n\n"
    assert not default_layout(tokenizer, len(tokenizer)).thinks_in_text


def test_without_a_template_one_sentence_says_so(tokenizer) -> None:
    tokenizer.chat_template = None
    with pytest.raises(StageError, match="no chat template"):
        default_layout(tokenizer, len(tokenizer))


@pytest.mark.parametrize(("tags", "number"), [("tokens", 1), ("text", 5), ("none", 0)])
def test_think_tags_are_tokens_text_or_not_there(tags: Tags, number: int, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_base("llama", tmp_path, tags))
    layout = default_layout(tokenizer, len(tokenizer))
    assert layout.thinks_in_text == (number > 0)
    ids = layout.token_ids(tokenizer)
    if number == 0:
        assert (ids.direct, ids.before_latents, ids.end_of_thinking) == ((), (), None)
        with pytest.raises(StageError, match="--thinking-prompt"):
            layout.check_explicit()
        prompted = layout.prompted("Let's think.")
        prompted.check_explicit()
        assert tokenizer.decode(prompted.token_ids(tokenizer).explicit) == "Let's think."
    if number == 1:
        assert tokenizer.decode([ids.end_token(tokenizer)]) == "</think>"
    else:
        with pytest.raises(StageError, match="with one token"):
            ids.end_token(tokenizer)


def test_what_a_reply_s_answer_is() -> None:
    ids = LayoutIds((), (), (), (), None)
    assert ids.split("<think>a</think>b") == ("<think>a", "b")
    assert ids.split("<think>a") == ("<think>a", None)
    one = LayoutIds((), (), (), (), None, end_of_thinking=None)
    assert one.split("a, so b") == ("a, so b", "a, so b")
    assert "has no think tags" in NO_THINKING


def test_pieces_are_tokenised_behind_what_stands_before_them(tokenizer) -> None:
    """As SentencePiece does it: a text that stands alone begins with a blank."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    layout = default_layout(tokenizer, len(tokenizer)).prompted("Think")
    assert tokenizer.decode(tokenizer.encode("Think")) == " Think"
    assert tokenizer.decode(layout.token_ids(tokenizer).explicit) == "Think"


@pytest.mark.parametrize(
    "token", ["<|reserved_special_token_7|>", "<unused12>", "<|placeholder1|>", "[unused3]", "<SPECIAL_20>", "[control_8]"]
)
def test_a_token_that_the_tokenizer_reserves_stands_for_latents(tokenizer, token: str) -> None:
    changed = without(tokenizer, LATENT_TOKEN, **{token: 9, "preserved": 5, "Ġreserved": 6, "placeholder": 7})
    assert default_layout(changed, 0).placeholder_token_id == 9


def test_no_word_does(tokenizer) -> None:
    changed = without(tokenizer, LATENT_TOKEN, preserved=5, reserved=6, **{"<reservations>": 7})
    layout = default_layout(changed, 0)
    assert layout.placeholder_token_id is None
    with pytest.raises(StageError, match="add_tokens"):
        layout.check_latents()


def test_an_id_with_an_embedding_and_no_token_is_free(tokenizer) -> None:
    changed = without(tokenizer, LATENT_TOKEN)
    most = max(changed.get_vocab().values())
    assert default_layout(changed, 600).placeholder_token_id == most + 1
    assert default_layout(changed, most + 1).placeholder_token_id is None


def test_a_token_of_pre_training_on_code_is_free_unless_it_ends_a_turn(tokenizer) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<empty_output>", "<gh_stars>"]})
    expected = tokenizer.convert_tokens_to_ids("<empty_output>")
    assert default_layout(without(tokenizer, LATENT_TOKEN), 0).placeholder_token_id == expected
    tokenizer.eos_token = "<empty_output>"
    assert default_layout(without(tokenizer, LATENT_TOKEN), 0).placeholder_token_id == expected + 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps({"direkt": ""}), "direkt Extra inputs are not permitted. It has direct, explicit"),
        (json.dumps({"placeholder_token_id": -1}), "placeholder_token_id"),
        ("{", "is no layout"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_layout_is_one_sentence(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "layout.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(StageError, match=says):
        Layout.read(file)
