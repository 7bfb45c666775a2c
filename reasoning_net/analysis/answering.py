"""What a network's latents make the base answer to prompts of any length, and how that hangs on what stands in them.

Shapes: B questions, T prompt tokens, K tokens of a trigger, d hidden size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.padding import padded
from reasoning_net.rollouts import think

_BATCH = 64


class LatentAnswers:
    """A base, its network and its layout, without an engine."""

    def __init__(self, base: FrozenBase, net: ReasoningNet, layout: LayoutIds, num_latents: int) -> None:
        self.base, self._net, self._layout, self._number = base, net.requires_grad_(False), layout, num_latents

    @torch.no_grad()
    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy, without the token that ends them."""
        found: dict[int, list[int]] = {}
        for rows in _alike(prompts):
            prompt = self.base.read([prompts[row] for row in rows])
            found |= zip(rows, self.base.generate(prompt, self._prefix(prompt), max_tokens), strict=True)
        return [found[row] for row in range(len(prompts))]

    @torch.no_grad()
    def likelihoods(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
        """P of each answer (with its end) after its prompt's latents, (B,): one forward each."""
        found = torch.zeros(len(prompts))
        for rows in _alike(prompts):
            prompt = self.base.read([prompts[row] for row in rows])
            found[rows] = self._log_likelihoods(prompt, [answers[row] for row in rows]).exp().cpu()
        return found

    def gradient(
        self, prompts: Sequence[tuple[Sequence[int], int]], trigger: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Of the answers' mean negative log-likelihood, by the embeddings of the trigger in each prompt's gap, (K, d)."""
        base = self.base
        rows = base.embed(torch.tensor(list(trigger), device=base.device)).detach().requires_grad_()
        tokens = [(torch.tensor(part, device=base.device) for part in (ids[:at], ids[at:])) for ids, at in prompts]
        pieces = [torch.cat([base.embed(left.long()), rows, base.embed(right.long())]) for left, right in tokens]
        longest = max(map(len, pieces))
        gaps = [longest - len(piece) for piece in pieces]
        embeddings = torch.stack([torch.nn.functional.pad(one, (0, 0, gap, 0)) for one, gap in zip(pieces, gaps, strict=True)])
        mask = torch.tensor([[False] * gap + [True] * (longest - gap) for gap in gaps], device=base.device)
        nothing = Prompt(embeddings[:, :0], embeddings[:, :0], mask[:, :0], DynamicCache(config=base.model.config))
        states = base.extend(nothing, embeddings, mask)
        likelihoods = self._log_likelihoods(Prompt(states, embeddings, mask, nothing.cache), answers)
        return torch.autograd.grad(-likelihoods.mean(), rows)[0]

    def _prefix(self, prompt: Prompt) -> Tensor:
        return self.base.prefix(self._layout, think(self._net, prompt, self._number))

    def _log_likelihoods(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> Tensor:
        """(B,). The prompt's cache is used up."""
        end = int(self.base.tokenizer.eos_token_id)
        ids = padded([[*answer, end] for answer in answers], fill=-1).to(prompt.mask.device)
        logits = self.base.answer_logits(prompt, self._prefix(prompt), ids.clamp(min=0))
        each = logits.float().log_softmax(-1).gather(2, ids.clamp(min=0)[..., None])[..., 0]
        return each.masked_fill(ids < 0, 0).sum(1)


def _alike(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Batches of rows whose prompts are of like length."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    yield from (order[at : at + _BATCH] for at in range(0, len(order), _BATCH))
