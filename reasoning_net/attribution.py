"""What written tokens rest on: exact gradients of their log-odds by the inputs that the frozen base read.

Two figures for each input: gradient × input, |⟨∂/∂e, e⟩|, and the norm of the gradient, which over a piece's tokens gives the
influence of "Reasoning models know what's important" (2604.18307), ‖∂ / ∂E_piece‖. There it is the gradient of probabilities;
ours is that of log-odds, log P / (1 - P), which points the same way for a token and does not vanish where it is sure.

Shapes: B sequences, T positions, d hidden size, V vocabulary, M tokens that are looked at, K targets of a sequence, N latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reasoning_net.frozen import FrozenBase
from reasoning_net.layout import LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.padding import left_padded, padded
from reasoning_net.rollouts import think

PRODUCT, INFLUENCE = "gradient × input", "influence"
SIGNALS = (PRODUCT, INFLUENCE)


@dataclass(frozen=True, slots=True)
class Attribution:
    """What each of K targets rests on, by position, (K, T) each."""

    products: Tensor
    norms: Tensor

    @classmethod
    def of(cls, gradients: Tensor, inputs: Tensor) -> "Attribution":
        """Of gradients (K, T, d) by inputs (T, d)."""
        return cls((gradients * inputs).sum(-1).abs().cpu(), gradients.norm(dim=-1).cpu())

    def over(self, pieces: Sequence[range], signal: str) -> Tensor:
        """By piece of the sequence, (K, pieces)."""
        if signal == PRODUCT:
            columns = [self.products[:, piece.start : piece.stop].sum(1) for piece in pieces]
        else:
            columns = [self.norms[:, piece.start : piece.stop].norm(dim=1) for piece in pieces]
        return torch.stack(columns, dim=1) if columns else self.products[:, :0]


@dataclass(frozen=True, slots=True)
class LatentAttribution:
    """What a latent answer rests on."""

    rows: Attribution
    """(1, N): latents."""
    through: Attribution
    """(N, T): tokens of X, through each latent."""
    all_through: Attribution
    """(1, T): through all of them, where what two latents take from a token may cancel out."""
    beside: Attribution
    """(1, T): as the answer reads X itself."""


def log_odds(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Of tokens (M,) by logits (M, V), (M,)."""
    others = logits.scatter(1, token_ids[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, token_ids[:, None])[:, 0] - others


def attribute(
    base: FrozenBase, sequences: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]]
) -> list[Attribution]:
    """What targets, each a list of positions of its sequence, rest on."""
    ids, mask = (tensor.to(base.device) for tensor in left_padded(sequences))
    embeddings = base.embed(ids).detach().requires_grad_()
    states = base.read_embeddings(embeddings, mask).hidden_states
    gaps = [ids.shape[1] - len(sequence) for sequence in sequences]
    places = torch.tensor(
        [(row, gaps[row] + at, k) for row, of in enumerate(targets) for k, positions in enumerate(of) for at in positions],
        device=base.device,
    ).view(-1, 3)  # (M, 3)
    rows, columns, which = places.unbind(1)
    odds = log_odds(base.logits(states[rows, columns - 1]).float(), ids[rows, columns])
    gradients = torch.stack(
        [_gradient(odds[which == k].sum(), embeddings) for k in range(max(map(len, targets)))], dim=1
    )  # (B, K, T, d)
    return [
        Attribution.of(gradients[row, : len(of), gaps[row] :], embeddings[row, gaps[row] :].detach())
        for row, of in enumerate(targets)
    ]


def attribute_latent(
    base: FrozenBase, net: ReasoningNet, layout: LayoutIds, num_latents: int, prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
) -> list[LatentAttribution]:  # fmt: skip
    """What answers after latents rest on; each target is a list of positions of its answer."""
    ids, mask = (tensor.to(base.device) for tensor in left_padded(prompts))
    embeddings = base.embed(ids).detach().requires_grad_()
    prompt = base.read_embeddings(embeddings, mask)
    made = think(net, prompt, num_latents)
    latents = made.detach().requires_grad_()
    written = padded(answers, fill=0).to(base.device)
    logits = base.answer_logits(prompt.copy(), base.prefix(layout, latents), written)
    places = torch.tensor([(row, at) for row, of in enumerate(targets) for at in of], device=base.device)
    rows, columns = places.unbind(1)
    odds = log_odds(logits[rows, columns].float(), written[rows, columns]).sum()
    by_latents, beside = torch.autograd.grad(odds, [latents, embeddings], retain_graph=True)
    each = torch.stack(
        [_gradient((made[:, row] * by_latents[:, row]).sum(), embeddings) for row in range(num_latents)], dim=1
    )  # (B, N, T, d)
    attributions = []
    for row, sequence in enumerate(prompts):
        here = slice(ids.shape[1] - len(sequence), None)
        inputs = embeddings[row, here].detach()
        through = each[row, :, here]
        attributions.append(
            LatentAttribution(
                Attribution.of(by_latents[row][None], latents[row].detach()),
                Attribution.of(through, inputs),
                Attribution.of(through.sum(0, keepdim=True), inputs),
                Attribution.of(beside[row, here][None], inputs),
            )
        )
    return attributions


def _gradient(value: Tensor, inputs: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, [inputs], retain_graph=True)
    return gradient
