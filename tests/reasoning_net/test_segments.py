"""Pieces of the demo's sequences."""

from reasoning_net.frozen import FrozenBase
from reasoning_net.segments import Segments

QUESTION = "Ann has 12 pens. In January, she finds 3 pens. How many pens does Ann have now?"


def text(base: FrozenBase, ids: list[int], positions: range) -> str:
    return str(base.tokenizer.decode(ids[positions.start : positions.stop])).strip()


def test_sentences_and_words_stand_where_their_tokens_do(base: FrozenBase) -> None:
    segments = Segments(base.tokenizer)
    ids = base.prompt_ids([{"role": "user", "content": QUESTION}])
    sentences = segments.sentences(ids, QUESTION)
    assert [one.text for one in sentences] == [
        "Ann has 12 pens.",
        "In January, she finds 3 pens.",
        "How many pens does Ann have now?",
    ]
    assert all(text(base, ids, one.positions) == one.text for one in sentences)
    words = segments.words(ids, sentences[1])
    assert [word.text for word in words] == "In January, she finds 3 pens.".split()
    assert all(text(base, ids, word.positions) == word.text for word in words)


def test_decimals_do_not_end_a_sentence_and_what_is_not_found_is_read_as_a_whole(base: FrozenBase) -> None:
    segments = Segments(base.tokenizer)
    ids = base.tokenizer.encode("It is 2.5 now. Why?", add_special_tokens=False)
    assert [one.text for one in segments.sentences(ids, "It is 2.5 now. Why?")] == ["It is 2.5 now.", "Why?"]
    assert [one.text for one in segments.sentences(ids, "something else")] == ["It is 2.5 now.", "Why?"]


def test_lines_and_their_numbers(base: FrozenBase) -> None:
    segments = Segments(base.tokenizer)
    chain = "At the start Ann has 12.\n\n12 + 3 = 15. Now Ann has 15.\nSo that is it."
    ids = [7, 7, *base.tokenizer.encode(chain, add_special_tokens=False)]
    lines = segments.lines(ids[2:], 2)
    assert [line.text for line in lines] == [line for line in chain.split("\n") if line]
    first, second, third = (line.positions for line in lines)
    numbers = [str(base.tokenizer.decode([ids[at]])).strip() for at in segments.numbers(ids, second)]
    assert "".join(numbers) == "1231515"
    assert str(base.tokenizer.decode([ids[at] for at in segments.last_number(ids, first)])).strip() == "12"
    assert segments.numbers(ids, third) == list(third)
    assert segments.last_number(ids, range(0)) == []
