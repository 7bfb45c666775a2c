"""What the reasoning network is trained on: the likelihood of what follows, what the chain's steps say about the latents, and
what the base itself would write after its own chain.

Shapes: B batch, N latent tokens, Y tokens to be written, V vocabulary, d hidden size of the base.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from reasoning_net.batches import Batch
from reasoning_net.chunked import row_losses
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import LayoutIds
from reasoning_net.lens import lens_logits
from reasoning_net.padding import padded
from reasoning_net.precision import autocast
from reasoning_net.selection import selected_divergence


def losses(
    think: Callable[..., Tensor], base: FrozenBase, layout: LayoutIds, batch: Batch, *, second_round: bool = False,
    share: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """NLL (B,), in nats per text, and the auxiliary loss.

    `second_round`: the base reads the latents, and the network thinks again with what it made of them. For `distill`: the
    divergence from the base that has read the chain, instead of the NLL; with a `share`, of the tokens that TIP selects.
    """
    with autocast(base.device):
        prompt = question = base.read_ids(batch.prompt_ids, batch.mask)
        asked = prompt.copy() if batch.kind == "distill" else None
        latents = think(question.hidden_states, question.embeddings, question.mask, batch.computed, batch.num_rounds)
        read = torch.arange(batch.computed, device=base.device) < batch.num_latents[:, None]  # (B, N)
        opening: tuple[int, ...] = layout.before_latents
        if second_round:
            states, prompt = base.read_on(prompt, base.between(opening, latents, ()), base.kept(opening, read, ()))
            made = states[:, len(opening) :], latents
            latents = think(question.hidden_states, question.embeddings, question.mask, batch.computed, batch.num_rounds, made)
            opening = ()
        closing = () if batch.kind == "rest" else layout.after_latents  # the rest of a chain closes itself
        prefix, kept = base.between(opening, latents, closing), base.kept(opening, read, closing)
        if asked is not None:
            return _distilled(base, prompt, asked, prefix, kept, batch, share), hint_loss(base, latents, batch.hints)
        states = base.answer_states(prompt, prefix, batch.targets.clamp(min=0), kept)
        nll = row_losses(partial(_nll, base.logits), base.embed.weight.shape[0], states, batch.targets)
    return nll.sum(1), hint_loss(base, latents, batch.hints)


def _nll(logits_of: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> Tensor:
    """Of rows (R, d); 0 where there is no target (−100)."""
    return cross_entropy(logits_of(states).float(), targets, ignore_index=-100, reduction="none")


def _kl(logits_of: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student ‖ teacher) of rows (R, d)."""
    ours, theirs = (logits_of(states).float().log_softmax(-1) for states in (student, teacher))
    return kl_div(theirs, ours, reduction="none", log_target=True).sum(-1)


def _entropy(logits_of: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """Of what rows (R, d) predict."""
    log_probs = logits_of(states).float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def _distilled(
    base: FrozenBase, prompt: Prompt, asked: Prompt, prefix: Tensor, kept: Tensor, batch: Batch, share: float | None
) -> Tensor:
    """KL(after latents ‖ after the chain), (B,), in nats over a reply that is sampled after the latents; with a `share` as the
    mean over the tokens that are selected.

    On-policy distillation (2306.13649) from the same frozen base, which has read its own chain.
    """
    end, vocabulary = int(base.tokenizer.eos_token_id), base.embed.weight.shape[0]
    replies = base.generate(prompt, prefix.detach(), batch.targets.shape[1] - 1, kept=kept, temperature=1.0)
    tokens = padded([[*reply, end] for reply in replies]).to(base.device)
    written = tokens != -100
    with torch.no_grad():
        chain = batch.chain != -100
        teacher = base.answer_states(asked, base.embed(batch.chain.clamp(min=0)), tokens.clamp(min=0), chain)
    student = base.answer_states(prompt, prefix, tokens.clamp(min=0), kept)
    divergence = row_losses(partial(_kl, base.logits), vocabulary, student, teacher)
    if share is not None:
        with torch.no_grad():
            entropy = row_losses(partial(_entropy, base.logits), vocabulary, student.detach())
        return selected_divergence(divergence, entropy, written, share, vocabulary)
    return (divergence * written).sum(1)


def hint_loss(base: FrozenBase, latents: Tensor, hints: Tensor) -> Tensor:
    """Cross-entropy of reading the j-th hint, (B, ≤ N), off the j-th latent, by similarity to the base's embeddings.

    Nothing constrains latents without a hint (−100).
    """
    read = partial(_nll, partial(lens_logits, embeddings=base.embed.weight))
    total = row_losses(read, base.embed.weight.shape[0], latents[:, : hints.shape[1]], hints).sum()
    return total / (hints != -100).sum().clamp(min=1)
