"""Small random bases of the shapes people have: the demo's tokenizer, its think tags as tokens, as plain text, or without."""

import json
from pathlib import Path
from typing import Any, Literal

import httpx
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from reasoning_net.bundle import Bundle
from reasoning_net.config import Conditioner, ReasoningNetConfig
from reasoning_net.demo.tokenizer import train_tokenizer
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import THINK_TAGS
from reasoning_net.model import ReasoningNet
from reasoning_net.stages.pack import pack

HIDDEN = 64
NUM_LATENTS = 8
Tags = Literal["tokens", "text", "none"]
_SLIDING = {"sliding_window": 16}
_BOTH = ["sliding_attention", "full_attention"]
SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, MistralForCausalLM, {"tie_word_embeddings": False} | _SLIDING),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"query_pre_attn_scalar": 32, "final_logit_softcapping": 5.0} | _SLIDING),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"query_pre_attn_scalar": 32, "layer_types": _BOTH} | _SLIDING),
}
"""Config, model, and what is particular to it: Gemma scales its embeddings and ties its head, and Gemma 2 caps its logits."""


def write_base(shape: str, directory: Path, tags: Tags = "tokens") -> Path:
    """A checkpoint in float32. Its weights are large, so that what it reads decides what it predicts."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(vocab_size=512, corpus_size=300)
    config, model, particular = SHAPES[shape]
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.1,
    }  # fmt: skip
    built: PreTrainedModel = model(config(**sizes | particular))
    built.save_pretrained(directory)
    _write_tokenizer(tokenizer, directory, tags)
    return directory


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path, tags: Tags) -> None:
    tokenizer.save_pretrained(directory)
    if tags == "tokens":
        return
    file, template = directory / "tokenizer.json", directory / "chat_template.jinja"
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in THINK_TAGS]
    content["model"]["vocab"] = {token: i for token, i in content["model"]["vocab"].items() if token not in THINK_TAGS}
    file.write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text(_without_tags((directory / "tokenizer_config.json").read_text()))
    shown = "{# <think></think> #}" if tags == "text" else ""
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template.write_text(f"{shown}{turns}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}")


def _without_tags(text: str) -> str:
    config = json.loads(text)
    for name in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(config.get(name), list):
            config[name] = [token for token in config[name] if token not in THINK_TAGS]
    return json.dumps(config)


def write_bundle(
    base: Path, directory: Path, thinking_prompt: str | None = None, conditioner: Conditioner = "all+embeddings"
) -> Bundle:
    """A random network whose latents are as loud as the base's own embeddings."""
    torch.manual_seed(1)
    frozen = FrozenBase(base)
    config = ReasoningNetConfig(
        base_hidden_size=frozen.hidden_size, num_latent_tokens=NUM_LATENTS, conditioner=conditioner, num_hidden_layers=2
    )
    net = ReasoningNet(config, frozen.embedding_rms)
    return pack(str(base), directory, frozen.layout(), net=net, num_latent_tokens=NUM_LATENTS)


@torch.no_grad()
def first_of_latent_answer(base: Path, bundle: Bundle, question: str) -> list[float]:
    """The five highest log-probabilities of a latent answer's first token, as transformers computes them."""
    frozen, net = FrozenBase(base), bundle.reasoning_net()
    assert net is not None
    prompt = frozen.read([frozen.prompt_ids([{"role": "user", "content": question}])])
    latents = net(prompt.hidden_states, prompt.embeddings, prompt.mask)
    states = frozen.extend(prompt, frozen.prefix(bundle.manifest.layout.token_ids(frozen.tokenizer), latents))
    return frozen.logits(states[0, -1]).float().log_softmax(-1).topk(5).values.tolist()


def served_first(url: str, question: str, mode: str) -> list[float]:
    """The same of a server."""
    body = {"model": "base", "mode": mode, "messages": [{"role": "user", "content": question}], "max_tokens": 1}
    body |= {"temperature": 0, "logprobs": True, "top_logprobs": 5}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    (first,) = response.json()["choices"][0]["logprobs"]["content"]
    return [one["logprob"] for one in first["top_logprobs"]]
