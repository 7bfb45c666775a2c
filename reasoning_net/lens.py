"""The input lens: which whole number a latent is nearest to, by similarity to a base's input embeddings.

Latents stand where embeddings do, so this is how they are read: hints in training, explanations offline, traces of a server.
(2604.04902 reads its latents, which are outputs, by the base's head.)

Shapes: B questions, N latent tokens, d hidden size, K whole numbers that are one token.
"""

import re

from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

_SHARPNESS = 12.0  # of the softmax over cosine similarities
_MOST_DIGITS = 9


def lens_logits(latents: Tensor, embeddings: Tensor) -> Tensor:
    """(…, N, K) of latents (…, N, d), over the tokens with these embeddings (K, d)."""
    return normalize(latents.float(), dim=-1) @ normalize(embeddings.float(), dim=-1).T * _SHARPNESS


def whole_numbers(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Token → the whole number that it is, with or without a space in front of it."""
    written = re.compile(rf" ?[0-9]{{1,{_MOST_DIGITS}}}")
    # A digit is itself in every vocabulary; few tokens have one, and only these are decoded.
    tokens = sorted(token for text, token in tokenizer.get_vocab().items() if re.search("[0-9]", text))
    texts = ((token, tokenizer.decode([token])) for token in tokens)
    return {token: int(text) for token, text in texts if written.fullmatch(text)}
