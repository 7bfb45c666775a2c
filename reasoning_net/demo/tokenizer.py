"""The demo's tokenizer: byte-level BPE (any input is legal) with Qwen3's special tokens and chat template."""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reasoning_net.demo.conversations import conversation
from reasoning_net.demo.questions import FAMILIES
from reasoning_net.layout import LATENT_TOKEN

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", LATENT_TOKEN]
# As in Qwen3 these are tokens of their own, but not "special": the reasoning and tool parsers read them as text.
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def _corpus(size: int) -> Iterator[str]:
    rng = random.Random("tokenizer")
    for _ in range(size):
        example = conversation(rng, "train", families=FAMILIES)
        yield "\n".join(
            [*(f"{m['role']}\n{m['content']}" for m in example.messages), "assistant\n", example.chain, "\n\n", example.reply]
        )
    yield from (" ".join(str(n) for n in range(100)) for _ in range(size // 20))  # every number below 100 is one token


def train_tokenizer(vocab_size: int = 1024, corpus_size: int = 20_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on generated conversations; the same every time."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(corpus_size), trainer)
    bpe.add_tokens(MARKS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=[LATENT_TOKEN],  # noqa: S106
        clean_up_tokenization_spaces=False, model_max_length=2048,
    )  # fmt: skip
    tokenizer.chat_template = Path(__file__).with_name("chat_template.jinja").read_text()
    return tokenizer
