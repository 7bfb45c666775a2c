from pathlib import Path

import torch

from reasoning_net.frozen import FrozenBase
from reasoning_net.losses import answer_ids, milestone_loss


def test_milestones_are_read_off_the_latents(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    texts = (" 7", " -", " 3", " 4")
    ids = [base.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert all(len(one) == 1 for one in ids)
    right = base.embed(torch.tensor([[one[0] for one in ids]]))
    padded = torch.cat([right, torch.randn(1, 3, base.hidden_size)], dim=1)  # what follows the last text is free
    assert float(milestone_loss(base, padded, [texts])) < float(milestone_loss(base, padded.flip(1), [texts]))
    assert float(milestone_loss(base, padded, [()])) == 0.0
    assert float(milestone_loss(base, padded[:, :2], [texts])) > 0.0, "a text without a latent is left out"


def test_replies_end_with_the_turn(tiny_base: Path) -> None:
    base = FrozenBase(tiny_base)
    ids = answer_ids(base, ["Ann", "Ann has 7 pens."])
    assert ids.shape[0] == 2
    assert int(ids[1, -1]) == base.tokenizer.eos_token_id
    assert int(ids[0, -1]) == -100
