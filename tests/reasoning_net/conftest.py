from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from reasoning_net.demo.base import model_config, save
from reasoning_net.demo.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base of the demo's kind, small enough to train on in a test."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("tiny") / "base"
    tokenizer = train_tokenizer(vocab_size=512, corpus_size=300)
    save(Qwen3ForCausalLM(model_config(64, 2, tokenizer)), tokenizer, directory)
    return directory
