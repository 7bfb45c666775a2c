"""What the reasoning network is trained on: the likelihood of the reply, and what the chain's steps say about the latents.

Shapes: B batch, N latent tokens, Y reply tokens, d hidden size of the base.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from reasoning_net.curriculum import Sample
from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.precision import autocast

Milestones = Literal["results", "steps"]
"""What the latents are to hold, one token each: the results of the chain's steps, or the steps themselves (operator, operand,
result), as LOTUS supervises every position (2606.31779)."""
_SHARPNESS = 12.0  # of the softmax over cosine similarities


def losses(
    think: Callable[..., Tensor], base: FrozenBase, layout: LayoutIds, batch: Sequence[Sample], num_latents: int,
    num_rounds: int, milestones: Milestones,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """NLL (B,), in nats per reply, and the auxiliary loss."""
    with autocast(base.device):
        prompt = base.read([sample.prompt_ids for sample in batch])
        latents = think(prompt.hidden_states, prompt.embeddings, prompt.mask, num_latents, num_rounds)
        answers = answer_ids(base, [sample.example.reply for sample in batch])
        logits = base.answer_logits(prompt, base.prefix(layout, latents), answers.clamp(min=0))
    nll = cross_entropy(logits.float().transpose(1, 2), answers, ignore_index=-100, reduction="none")
    examples = [sample.example for sample in batch]
    texts = [example.milestones if milestones == "results" else example.condensed for example in examples]
    return nll.sum(1), milestone_loss(base, latents, texts)


def answer_ids(base: FrozenBase, replies: list[str]) -> Tensor:
    """Y with its end-of-turn token, (B, Y), −100 where there is none."""
    end = int(base.tokenizer.eos_token_id)
    return labels([[*base.tokenizer.encode(reply, add_special_tokens=False), end] for reply in replies], base.device)


def labels(rows: list[list[int]], device: torch.device) -> Tensor:
    """Rows of token ids as one tensor, −100 where a row has ended."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=-100).to(device)


def milestone_loss(base: FrozenBase, latents: Tensor, milestones: Sequence[tuple[str, ...]]) -> Tensor:
    """Cross-entropy of reading the j-th text off the j-th latent, by similarity to the base's embeddings.

    Nothing constrains the latents after the last text. Texts that are more than one token are left out.
    """
    targets = torch.full(latents.shape[:2], -100, device=latents.device)  # (B, N)
    for row, texts in enumerate(milestones):
        for slot, text in enumerate(texts[: latents.shape[1]]):
            ids = base.tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == 1:
                targets[row, slot] = ids[0]
    if not bool((targets >= 0).any()):
        return latents.sum() * 0.0
    chosen = targets >= 0
    similarity = normalize(latents[chosen].float(), dim=-1) @ normalize(base.embed.weight.float(), dim=-1).T
    return cross_entropy(similarity * _SHARPNESS, targets[chosen])
