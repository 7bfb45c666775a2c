"""What the first token of a direct answer says, of bases that are told to answer at once, and of those that do."""

from pathlib import Path

import pytest
import torch

from reasoning_net.frozen import FrozenBase
from reasoning_net.stages.observe import first_token_entropy
from tests.bases import Tags, write_base


@pytest.mark.parametrize("tags", ["tokens", "none"])
def test_the_entropy_of_a_first_token_is_that_of_transformers(tags: Tags, tmp_path: Path) -> None:
    base = FrozenBase(write_base("llama", tmp_path, tags))
    layout = base.layout().token_ids(base.tokenizer)
    assert bool(layout.direct) == (tags == "tokens")
    asked = [base.prompt_ids([{"role": "user", "content": text}]) for text in ("Tom has 7 pens.", "Hi")]
    found = first_token_entropy(base, layout, base.read(asked))
    for ids, entropy in zip(asked, found, strict=True):
        logits = base.model(torch.tensor([[*ids, *layout.direct]])).logits[0, -1]
        assert float(entropy) == pytest.approx(float(torch.distributions.Categorical(logits=logits).entropy()), rel=1e-3)
