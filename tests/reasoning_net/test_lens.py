"""Reading latents by a base's embeddings."""

import torch

from reasoning_net.frozen import FrozenBase
from reasoning_net.lens import lens_logits, whole_numbers


def test_a_latent_that_is_a_numbers_embedding_says_that_number(base: FrozenBase) -> None:
    numbers = whole_numbers(base.tokenizer)
    embeddings = base.embed.weight[list(numbers)]
    for said in (" 7", " 42"):
        (token,) = base.tokenizer.encode(said, add_special_tokens=False)
        latents = torch.stack([base.embed.weight[token], 30 * base.embed.weight[token]])[None]
        probabilities, nearest = lens_logits(latents, embeddings).softmax(-1).max(-1)
        assert [list(numbers.values())[index] for index in nearest[0]] == [int(said)] * 2, "however loud it is"
        assert torch.allclose(probabilities[0, 0], probabilities[0, 1])
        assert probabilities[0, 0] > 0.5


def test_whole_numbers_are_tokens_of_digits_alone(base: FrozenBase) -> None:
    numbers = whole_numbers(base.tokenizer)
    assert {base.tokenizer.decode([token]).strip() for token in numbers} == {str(number) for number in numbers.values()}
    assert set(range(10)) <= set(numbers.values())
