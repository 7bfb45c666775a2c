import random
from pathlib import Path

from reasoning_net.demo.base import END_THINK, BaseConfig, cut, draw_sample
from reasoning_net.demo.conversations import conversation
from reasoning_net.frozen import FrozenBase


def learnt(tiny_base: Path, **config: float) -> list[str]:
    """What is learnt of some conversations, as text; | stands for the rest."""
    tokenizer = FrozenBase(tiny_base).tokenizer
    rng = random.Random(0)
    samples = [draw_sample(rng, tokenizer, BaseConfig(output=tiny_base, **config), 3) for _ in range(20)]
    (bar,) = tokenizer.encode("|")
    return [tokenizer.decode([bar if label == -100 else label for label in one.labels]) for one in samples]


def test_chains_and_replies_are_learnt_and_questions_are_not(tiny_base: Path) -> None:
    for text in learnt(tiny_base, direct_share=0, cut_share=0):
        assert text.startswith("||")
        assert "<|im_start|>" not in text
        assert text.count(END_THINK) == 1
        assert text.endswith("<|im_end|>")
    for text in learnt(tiny_base, direct_share=1):
        assert "think>" not in text


def test_where_a_cut_chain_ends_is_not_learnt(tiny_base: Path) -> None:
    texts = learnt(tiny_base, direct_share=0, cut_share=1)
    assert sum(END_THINK not in text for text in texts) > 10, "small talk is not cut"
    assert all(text.endswith("<|im_end|>") for text in texts)


def test_a_cut_chain_is_answered_from_its_last_whole_line() -> None:
    rng = random.Random(1)
    talks = [talk for _ in range(100) if (talk := conversation(rng, "train")).question]
    for talk in talks:
        kept, reply = cut(rng, talk)
        lines, written = talk.chain.split("\n"), kept.split("\n")
        assert talk.chain.startswith(kept)
        whole = sum(line == one for line, one in zip(lines, written, strict=False))
        assert 0 < whole < len(lines)
        assert reply == talk.standing[whole - 1]
