"""Where a chain's steps end."""

from transformers import AutoTokenizer

from reasoning_net.boundaries import Boundaries
from reasoning_net.demo import DEMO_MODEL


def test_a_step_ends_with_its_line_and_blank_belongs_to_none() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    boundaries = Boundaries(tokenizer)
    ids = tokenizer.encode("\n5 + 3 = 8.\n\n8 + 1 = 9.\nSo", add_special_tokens=False)
    assert [tokenizer.decode(ids[:end]) for end in boundaries.ends(ids)] == ["\n5 + 3 = 8.", "\n5 + 3 = 8.\n\n8 + 1 = 9."]
    assert boundaries.ends(tokenizer.encode("no end", add_special_tokens=False)) == []
    assert list(boundaries.trimmed(tokenizer.encode("\n \n", add_special_tokens=False))) == []


def test_pieces_are_lines_or_sentences_and_join_to_the_chain() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    boundaries = Boundaries(tokenizer)
    chain = "Ann has 5. Wait, is that right? 5 + 3 = 8.\n\nSo the answer is 8."
    ids = tokenizer.encode(f"{chain}\n", add_special_tokens=False)
    lines = [tokenizer.decode(piece) for piece in boundaries.pieces(ids)]
    assert lines == ["Ann has 5. Wait, is that right? 5 + 3 = 8.", "\n\nSo the answer is 8."]
    sentences = [tokenizer.decode(piece) for piece in boundaries.pieces(ids, sentences=True)]
    assert sentences == ["Ann has 5.", " Wait, is that right?", " 5 + 3 = 8.", "\n\nSo the answer is 8."]
    assert "".join(sentences) == chain
    assert boundaries.pieces(tokenizer.encode("\n \n", add_special_tokens=False)) == []
