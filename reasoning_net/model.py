"""G_φ: from the hidden states of the question to the latents that stand in for the written chain.

z = f_out( G( f_in(H_X), r̂ ) ), after Latent Reasoning Tuning (ICLR 2026), section 3.1: f_in and f_out are linear, r̂ are
learnable latent queries, G is a Qwen3 transformer without its embedding layer. Where we differ from the paper:

- With the conditioners `all…` the transformer reads f_in(H_X) of every prompt position, before the queries; those
  positions see each other in both directions. With `last` the queries are f_in(h) ⊙ r̂, as in the paper.
- The network may think in rounds: it runs again on its queries with what came out of them before, weights tied, as in LOTUS
  (2606.31779). The positions of the prompt do not see the queries, so they are read once for all rounds.
- Query i sees only the queries before it. The first n of 256 latents are therefore the n latents of a smaller budget:
  one network serves every budget, and blocks of the engine's prefix cache stay valid between budgets.
- z is scaled to the RMS of the base's token embeddings (times a learned factor), which the frozen base is used to.

Shapes: B batch, T prompt tokens, C those that the transformer reads (T or none), N latent tokens, d hidden size of the base, w
hidden size of the network.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import AutoConfig, DynamicCache, Qwen3Config, Qwen3Model

from reasoning_net.config import SIZES, Conditioner, ReasoningNetConfig
from reasoning_net.errors import StageError


class ReasoningNet(nn.Module):
    """The reasoning network. Its forward is one pass: no sampling, no loop over latents."""

    def __init__(self, config: ReasoningNetConfig, embedding_rms: float = 1.0) -> None:
        super().__init__()
        self.config = config
        num_inputs = config.base_hidden_size * (2 if config.reads_embeddings else 1)
        self.f_in = nn.Linear(num_inputs, config.hidden_size, bias=False)
        self.queries = nn.Parameter(torch.randn(config.num_latent_tokens, config.hidden_size) * 0.5)
        self.backbone = Qwen3Model(
            Qwen3Config(
                vocab_size=1,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                attn_implementation="sdpa",
                **{name: getattr(config, name) for name in SIZES},
            )
        )
        del self.backbone.embed_tokens
        if config.num_rounds > 1:
            self.rounds = nn.Parameter(torch.zeros(config.num_rounds - 1, config.hidden_size))
        if config.second_round:
            self.second_round = nn.Parameter(torch.zeros(config.hidden_size))
        self.f_out = nn.Linear(config.hidden_size, config.base_hidden_size, bias=False)
        self.scale = nn.Parameter(torch.tensor(float(embedding_rms)))

    def forward(
        self, hidden_states: Tensor, embeddings: Tensor, mask: Tensor, num_latents: int | None = None,
        num_rounds: int | None = None, made: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The latents z, (B, N, d).

        Args:
            hidden_states: H_X, (B, T, d), the base's final (normed) hidden states, padded on the left.
            embeddings: E_X, (B, T, d), the embeddings of X; read only by the conditioner `all+embeddings`.
            mask: (B, T) bool, True where there is a token.
            num_latents: N; the network's own number by default.
            num_rounds: the network's own number by default.
            made: latents of an earlier pass as (the base's final states at them, themselves), (B, N, d) each: a second round.
        """
        if (most := self.config.max_prompt_tokens) is not None:
            hidden_states, embeddings, mask = hidden_states[:, -most:], embeddings[:, -most:], mask[:, -most:]
        queries = self.queries[: num_latents or self.config.num_latent_tokens]  # (N, w)
        states = self._enter(hidden_states, embeddings)  # (B, T, w)
        if self.config.reads_all_positions:
            read, seen, first = states, mask, queries.expand(len(states), -1, -1)
        else:
            read, seen, first = states[:, :0], mask[:, :0], states[:, -1:] * queries
        if made is not None:
            first = first + self._enter(*made) + self.second_round
        keys = torch.cat([seen, seen.new_ones(len(seen), len(queries))], dim=1)  # (B, C + N)
        allowed, positions = _allowed(keys, seen.shape[1]), _positions(keys)
        num_rounds = num_rounds or self.config.num_rounds
        cache = DynamicCache() if num_rounds > 1 else None
        # The prompt and the queries of the first round in one go: a pass costs more than its rows.
        outputs = self._attend(torch.cat([read, first], dim=1), allowed, positions, cache)[:, -len(queries) :]
        for round_ in range(1, num_rounds):
            assert cache is not None
            cache.crop(-len(queries))  # what the round before has left
            inputs = first + outputs + self.rounds[round_ - 1]
            outputs = self._attend(inputs, allowed[:, :, -len(queries) :], positions[:, -len(queries) :], cache)
        z = self.f_out(outputs)
        return rms_norm(z, z.shape[-1:]) * self.scale

    def _enter(self, hidden_states: Tensor, embeddings: Tensor) -> Tensor:
        inputs = rms_norm(hidden_states, hidden_states.shape[-1:])
        if self.config.reads_embeddings:
            inputs = torch.cat([inputs, rms_norm(embeddings, embeddings.shape[-1:])], dim=-1)
        return self.f_in(inputs)

    def _attend(self, inputs: Tensor, allowed: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        """The backbone on `inputs` (B, Q, w), after what is cached."""
        return self.backbone(
            inputs_embeds=inputs,
            attention_mask=allowed,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state


def _positions(keys: Tensor) -> Tensor:
    return (keys.long().cumsum(1) - 1).clamp(min=0)


def _allowed(keys: Tensor, num_read: int) -> Tensor:
    """Which keys (B, K) each of them attends to, (B, 1, K, K) bool: of those that are tokens, all of the first `num_read`, and
    after them those before it; and itself, always."""
    length = keys.shape[1]
    visible = keys.new_ones(length, length).tril()
    visible[:, :num_read] = True
    own = torch.eye(length, dtype=torch.bool, device=keys.device)
    return (keys[:, None, :] & visible | own)[:, None]


def embedding_rms(embeddings: Tensor) -> float:
    """The root mean square of a base's token embeddings, (V, d): the scale of what it is used to read."""
    return float(embeddings.float().pow(2).mean().sqrt())


def config_of_backbone(path: str, base_hidden_size: int, num_latents: int, conditioner: Conditioner) -> ReasoningNetConfig:
    """The architecture around a pre-trained backbone (in the paper Qwen3-Embedding-0.6B); raises `StageError` for no Qwen3."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise StageError(f"The backbone {path} cannot be loaded: {error}") from error
    if config.model_type != "qwen3":
        raise StageError(f"The backbone {path} is of type {config.model_type!r}: only qwen3 is supported.")
    return ReasoningNetConfig(
        base_hidden_size=base_hidden_size,
        num_latent_tokens=num_latents,
        conditioner=conditioner,
        rope_theta=config.rope_parameters["rope_theta"],
        **{name: getattr(config, name) for name in SIZES},
    )


def load_backbone(net: ReasoningNet, path: str) -> None:
    """Start from the backbone's weights; its embedding layer is left out, as in the paper."""
    weights = Qwen3Model.from_pretrained(path).state_dict()
    net.backbone.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("embed_tokens")})
