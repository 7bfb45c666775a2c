"""A network that nothing was learnt by yet: fresh, or with the weights of a pre-trained backbone."""

from typing import TYPE_CHECKING

from reasoning_net.config import ReasoningNetConfig
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.model import ReasoningNet, config_of_backbone, load_backbone

if TYPE_CHECKING:
    from reasoning_net.stages.sft import SftConfig


def new_network(config: "SftConfig", base: FrozenBase) -> ReasoningNet:
    net = ReasoningNet(network_config(config, base.hidden_size), base.embedding_rms).to(base.device)
    if config.backbone:
        load_backbone(net, config.backbone)
    return net


def network_config(config: "SftConfig", base_hidden_size: int) -> ReasoningNetConfig:
    """The backbone's architecture, or a fresh one whose other sizes follow from its width."""
    if config.backbone:
        found = config_of_backbone(config.backbone, base_hidden_size, config.max_latents, config.conditioner)
        return found.model_copy(update={"num_rounds": config.num_rounds, "second_round": config.second_round})
    if config.hidden_size % 32:
        raise StageError(f"The width of the network must be a multiple of 32 (heads are 32 wide), not {config.hidden_size}.")
    return ReasoningNetConfig(
        base_hidden_size=base_hidden_size,
        num_latent_tokens=config.max_latents,
        num_rounds=config.num_rounds,
        second_round=config.second_round,
        conditioner=config.conditioner,
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 8 // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.hidden_size // 32,
        num_key_value_heads=config.hidden_size // 32,
    )
