"""The frozen base model as training sees it: read a question once, then answer after a thinking prefix.

Shapes: B batch, T prompt tokens, P prefix tokens (layout and latents), Y answer tokens, d hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from reasoning_net.layout import LayoutIds


@dataclass(slots=True)
class Prompt:
    """A batch of questions that the base has read: its final hidden states, and its KV cache to continue from."""

    hidden_states: Tensor  # (B, T, d)
    embeddings: Tensor  # (B, T, d)
    mask: Tensor  # (B, T) bool, padded on the left
    cache: DynamicCache

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1, keepdim=True)  # (B, 1)


class FrozenBase:
    """A causal LM whose parameters never get a gradient."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        self.model.requires_grad_(False).eval().to(device)
        self.device = torch.device(device)
        self.hidden_size = int(self.model.config.hidden_size)
        self.embed = self.model.get_input_embeddings()

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """X: the conversation through the chat template, up to where the model has to write."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer.encode(str(text), add_special_tokens=False)

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]]) -> Prompt:
        """Prefill, padded on the left."""
        length = max(map(len, prompts))
        ids = torch.zeros(len(prompts), length, dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = True
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        hidden_states = self.model.model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return Prompt(hidden_states, self.embed(ids), mask, cache)

    def prefix(self, layout: LayoutIds, latents: Tensor) -> Tensor:
        """The latent layout as input embeddings, (B, P, d)."""
        before, after = (
            self.embed(torch.tensor([ids], device=self.device)) for ids in (layout.before_latents, layout.after_latents)
        )
        rows = (before.expand(len(latents), -1, -1), latents.to(before.dtype), after.expand(len(latents), -1, -1))
        return torch.cat(rows, dim=1)

    def answer_logits(self, prompt: Prompt, prefix: Tensor, answer_ids: Tensor) -> Tensor:
        """Logits that predict each of `answer_ids` (B, Y) after the prefix, (B, Y, V). The prompt's cache is used up."""
        inputs = torch.cat([prefix, self.embed(answer_ids[:, :-1])], dim=1)
        hidden = self.extend(prompt, inputs)
        return self.model.lm_head(hidden[:, -answer_ids.shape[1] :])

    def extend(self, prompt: Prompt, inputs: Tensor) -> Tensor:
        """Read `inputs` (B, P, d) after the prompt; their final hidden states, (B, P, d)."""
        past = prompt.cache.get_seq_length()
        mask = torch.cat([prompt.mask, prompt.mask.new_ones(len(inputs), past - prompt.mask.shape[1] + inputs.shape[1])], dim=1)
        positions = mask.long().cumsum(1)[:, past:] - 1
        return self.model.model(
            inputs_embeds=inputs,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=prompt.cache,
            use_cache=True,
        ).last_hidden_state

    @torch.no_grad()
    def generate(self, prompt: Prompt, prefix: Tensor, max_tokens: int) -> list[list[int]]:
        """Greedy replies after the prefix, up to the end-of-turn token, which is left out."""
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        inputs = prefix
        columns: list[Tensor] = []
        done = torch.zeros(len(prefix), dtype=torch.bool, device=self.device)
        while len(columns) < max_tokens and not bool(done.all()):
            token = self.model.lm_head(self.extend(prompt, inputs)[:, -1]).argmax(-1)  # (B,)
            columns.append(token)
            done |= torch.isin(token, torch.tensor(sorted(ends), device=self.device))
            inputs = self.embed(token[:, None])
        replies = torch.stack(columns, dim=1).tolist()
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in replies]
