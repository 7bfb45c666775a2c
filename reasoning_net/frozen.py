"""The frozen base model as training sees it: read a question once, then answer after a thinking prefix.

Any causal LM that transformers loads. Shapes: B batch, T prompt tokens, P prefix tokens (layout and latents), Y answer
tokens, d hidden size, V vocabulary, K copies (samples of one question).
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from reasoning_net.errors import StageError
from reasoning_net.layout import Layout, LayoutIds, default_layout, prompt_ids
from reasoning_net.model import embedding_rms
from reasoning_net.padding import left_padded


@dataclass(slots=True)
class Prompt:
    """A batch of questions that the base has read: its final hidden states, and its KV cache to continue from."""

    hidden_states: Tensor  # (B, T, d)
    embeddings: Tensor  # (B, T, d)
    mask: Tensor  # (B, T) bool, padded on the left
    cache: DynamicCache | None
    """None where activations are recomputed instead of kept: the answer then reads the prompt once more."""
    earlier: tuple[Tensor, ...] = ()
    """Hidden states after the layers that were asked for, (B, T, d) each."""

    @property
    def all_states(self) -> Tensor:
        """The final hidden states and the earlier ones, (B, 1 + L, T, d)."""
        return torch.stack([self.hidden_states, *self.earlier], dim=1)

    def copy(self) -> "Prompt":
        """The same prompts with a cache of their own."""
        if self.cache is None:
            return self
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # what is selected or appended is a new tensor
        return replace(self, cache=cache)

    def rows(self, index: Tensor) -> "Prompt":
        """The prompts of these rows (R,), any of them as often as wanted, with a cache of their own."""
        if (cache := self.copy().cache) is not None:
            cache.batch_select_indices(index)
        earlier = tuple(states[index] for states in self.earlier)
        return Prompt(self.hidden_states[index], self.embeddings[index], self.mask[index], cache, earlier)


class FrozenBase:
    """A causal LM whose parameters never get a gradient."""

    def __init__(
        self, path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        """`checkpointing`: recompute activations in the backward pass, for memory.

        Raises `StageError` when there is no such checkpoint.
        """
        if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise StageError(f"There is no model in {path}: a checkpoint directory has a config.json.")
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
            self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        except ImportError as error:  # of whoever reads quantised weights
            raise StageError(
                f"The base {path} cannot be loaded: {error} Training reads a base through transformers: install what it asks "
                "for, or train on the checkpoint that was quantised, and serve this one with that bundle."
            ) from error
        except (OSError, ValueError) as error:
            raise StageError(f"The base {path} cannot be loaded: {error}") from error
        self.model.requires_grad_(False).eval().to(device)
        self._checkpointing = checkpointing
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.device = torch.device(device)
        self._config = self.model.config.get_text_config()
        self.hidden_size = int(self._config.hidden_size)
        self.num_layers = int(self._config.num_hidden_layers)
        self.embed = self.model.get_input_embeddings()
        self._pieces: dict[tuple[int, ...], Tensor] = {}

    def layout(self, file: Path | None = None, thinking_prompt: str | None = None) -> Layout:
        """The layout in `file`, else the one that follows from the base's tokenizer and chat template."""
        found = Layout.read(file) if file else default_layout(self.tokenizer, self.embed.weight.shape[0])
        return found.prompted(thinking_prompt)

    @property
    def embedding_rms(self) -> float:
        """The scale of what the base is used to read: of its embeddings as they enter its first layer."""
        return embedding_rms(self.embed.weight) * float(getattr(self.embed, "scalar_embed_scale", 1.0))

    def logits(self, states: Tensor) -> Tensor:
        """What final hidden states (…, d) predict, (…, V)."""
        logits = self.model.lm_head(states)
        if (most := getattr(self._config, "final_logit_softcapping", None)) is not None:  # Gemma's
            logits = (logits / most).tanh() * most
        return logits

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """X: the conversation through the chat template, up to where the model has to write."""
        return prompt_ids(self.tokenizer, messages)

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int] = ()) -> Prompt:
        """Prefill, padded on the left. `layers`: those after which the hidden states are kept, too."""
        ids, mask = left_padded(prompts)
        return self.read_ids(ids.to(self.device), mask.to(self.device), layers)

    @torch.no_grad()
    def read_ids(self, ids: Tensor, mask: Tensor, layers: Sequence[int] = ()) -> Prompt:
        """Prefill token ids (B, T), which the mask, (B, T) bool, pads on the left."""
        return self.read_embeddings(self.embed(ids), mask, layers)

    def read_embeddings(self, embeddings: Tensor, mask: Tensor, layers: Sequence[int] = ()) -> Prompt:
        """Prefill embeddings (B, T, d), with gradients by those that ask for them."""
        cache = None if self._checkpointing else DynamicCache(config=self.model.config)
        output = self._forward(embeddings, mask, cache, output_hidden_states=bool(layers))
        earlier = tuple(output.hidden_states[layer] for layer in layers)
        return Prompt(output.last_hidden_state, embeddings, mask, cache, earlier)

    def _forward(self, inputs: Tensor, mask: Tensor, cache: DynamicCache | None, **options: bool) -> BaseModelOutputWithPast:
        """Read `inputs` (B, P, d) after what the cache holds; the mask is of both."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        return self.model.model(
            inputs_embeds=inputs, attention_mask=mask.long(), position_ids=positions, past_key_values=cache,
            use_cache=cache is not None, **options,
        )  # fmt: skip

    def prefix(self, layout: LayoutIds, latents: Tensor) -> Tensor:
        """The latent layout as input embeddings, (B, P, d)."""
        return self.between(layout.before_latents, latents, layout.after_latents)

    def between(self, before: tuple[int, ...], latents: Tensor, after: tuple[int, ...]) -> Tensor:
        """Input embeddings of latents (B, N, d) between tokens, (B, P, d)."""
        pieces = (self._piece(before).expand(len(latents), -1, -1), self._piece(after).expand(len(latents), -1, -1))
        return torch.cat([pieces[0], latents.to(pieces[0].dtype), pieces[1]], dim=1)

    @staticmethod
    def kept(before: tuple[int, ...], read: Tensor, after: tuple[int, ...]) -> Tensor:
        """Which rows of `between` are read, (B, P) bool: all tokens, and of the latents those in `read`, (B, N) bool."""
        return torch.cat([read.new_ones(len(read), len(before)), read, read.new_ones(len(read), len(after))], dim=1)

    def _piece(self, ids: tuple[int, ...]) -> Tensor:
        """The embeddings of a layout's tokens, (1, P, d); kept, since a CUDA graph takes nothing from the host."""
        if ids not in self._pieces:
            self._pieces[ids] = self.embed(torch.tensor([ids], dtype=torch.long, device=self.device))
        return self._pieces[ids]

    def answer_logits(self, prompt: Prompt, prefix: Tensor, answer_ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits that predict each of `answer_ids` (B, Y) after the prefix (B, P, d), (B, Y, V). The prompt's cache is used up.

        `kept`: which rows of the prefix are read, (B, P) bool; all by default.
        """
        return self.logits(self.answer_states(prompt, prefix, answer_ids, kept))

    def answer_states(self, prompt: Prompt, prefix: Tensor, answer_ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """What the head makes `answer_logits` of, (B, Y, d)."""
        inputs = torch.cat([prefix, self.embed(answer_ids[:, :-1])], dim=1)
        if kept is not None:
            kept = torch.cat([kept, kept.new_ones(answer_ids[:, :-1].shape)], dim=1)
        return self.extend(prompt, inputs, kept)[:, -answer_ids.shape[1] :]

    def read_on(self, prompt: Prompt, inputs: Tensor, kept: Tensor) -> tuple[Tensor, Prompt]:
        """The final hidden states of `inputs` (B, P, d), and the prompt that has read them, too. The one before is used up."""
        states = self.extend(prompt, inputs, kept)
        embeddings, mask = torch.cat([prompt.embeddings, inputs], dim=1), torch.cat([prompt.mask, kept], dim=1)
        return states, replace(prompt, embeddings=embeddings, mask=mask)

    def extend(self, prompt: Prompt, inputs: Tensor, kept: Tensor | None = None) -> Tensor:
        """Read `inputs` (B, P, d) after the prompt, but for rows that are not kept; their final hidden states, (B, P, d)."""
        kept = prompt.mask.new_ones(inputs.shape[:2]) if kept is None else kept
        mask = torch.cat([prompt.mask, kept], dim=1)
        if prompt.cache is not None:
            return self._forward(inputs, mask, prompt.cache).last_hidden_state
        # The prompt is read again: checkpointing recomputes layers, which a cache would see twice. And transformers recomputes
        # in training mode only; a frozen base has no dropout that this would start.
        self.model.train()
        try:
            states = self._forward(torch.cat([prompt.embeddings, inputs], dim=1), mask, None).last_hidden_state
        finally:
            self.model.eval()
        return states[:, -inputs.shape[1] :]

    @torch.no_grad()
    def generate(
        self, prompt: Prompt, prefix: Tensor, max_tokens: int, *, copies: int = 1, temperature: float = 0.0, top_p: float = 1.0,
        kept: Tensor | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Replies after the prefix, up to the end-of-turn token, which is left out; greedy at temperature 0.

        `kept`: which rows of the prefix are read, (B, P) bool; all by default. With `copies` K the B questions give B · K
        replies, those of one question together.
        """
        rows = torch.arange(len(prefix), device=self.device).repeat_interleave(copies)
        kept = prompt.mask.new_ones(prefix.shape[:2]) if kept is None else kept
        prompt, prefix, kept = prompt.rows(rows), prefix[rows], kept[rows]
        # Whatever a checkpoint's own generation config would change is named.
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        replies = self.model.generate(
            inputs_embeds=torch.cat([prompt.embeddings, prefix], dim=1),
            attention_mask=torch.cat([prompt.mask, kept], dim=1).long(),
            past_key_values=prompt.cache,
            max_new_tokens=max_tokens,
            pad_token_id=min(ends),
            **{"do_sample": False, "repetition_penalty": 1.0} | sampling,
        )
        return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in replies.tolist()]
