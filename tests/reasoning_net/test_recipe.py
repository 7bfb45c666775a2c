"""Recipes of bases as their config.json describes them."""

from dataclasses import replace

import pytest

from reasoning_net.recipe import (
    BaseShape,
    Costs,
    DataShape,
    Machine,
    Recipe,
    latents_for,
    memory_needed,
    network_size,
    steps_for,
)
from reasoning_net.stages.sft import SftConfig

GIB = 2**30
DEMO = {
    "hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 1024, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "max_position_embeddings": 2048,
}  # fmt: skip
SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "max_position_embeddings": 8192,
}  # fmt: skip
QWEN3_1_7B = {
    "hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True, "dtype": "bfloat16",
    "max_position_embeddings": 40960,
}  # fmt: skip
QWEN3_0_6B = QWEN3_1_7B | {"hidden_size": 1024, "intermediate_size": 3072}
QWEN3_8B = QWEN3_1_7B | {
    "hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32,
    "tie_word_embeddings": False,
}  # fmt: skip
LAPTOP, GPU = Machine("cpu", 16 * GIB, 4), Machine("cuda", 76 * GIB, 2)
MADE = DataShape(None, None, 120, 250, 12, 250, 420)
ROWS = DataShape(8000, 1000, 120, 300, 400, 1900, 6000)


@pytest.mark.parametrize(
    ("config", "millions"), [(DEMO, 2.56), (SMOLLM2, 134.5), (QWEN3_0_6B, 596), (QWEN3_1_7B, 1720), (QWEN3_8B, 8190)]
)
def test_parameters_are_those_of_the_checkpoints(config: dict[str, object], millions: float) -> None:
    assert BaseShape.of(config).parameters / 1e6 == pytest.approx(millions, rel=0.03)
    assert BaseShape.of({"text_config": config}).parameters == BaseShape.of(config).parameters


def test_the_demos_recipe_is_what_trained_the_demo() -> None:
    recipe, trained = Recipe.of(BaseShape.of(DEMO), MADE, LAPTOP), SftConfig(output="o")
    assert (recipe.hidden_size, recipe.num_layers) == (trained.hidden_size, trained.num_layers) == (160, 7)
    assert (recipe.num_latents, recipe.trained_latents, recipe.ladder) == (16, 32, (2, 4, 8))
    assert (recipe.batch_size, recipe.accumulate, recipe.steps) == (64, 1, trained.steps)
    assert (recipe.muon_lr, recipe.adamw_lr) == (trained.optimizer.muon_lr, trained.optimizer.adamw_lr)
    assert (recipe.fit_questions, recipe.explicit_questions) == (8000, 1000)
    assert recipe.trace_questions == 0
    on_gpu = Recipe.of(BaseShape.of(DEMO), MADE, GPU)
    assert (on_gpu.batch_size, on_gpu.steps) == (256, 24_000)


def test_networks_grow_with_their_bases_and_are_a_smaller_part_of_them() -> None:
    shapes = [BaseShape.of(config) for config in (DEMO, SMOLLM2, QWEN3_0_6B, QWEN3_1_7B, QWEN3_8B)]
    widths = [network_size(shape)[0] for shape in shapes]
    assert widths == sorted(widths)
    assert all(width % 32 == 0 for width in widths)
    parts = [
        12 * w * w * layers / shape.layer_parameters
        for shape, (w, layers) in zip(shapes, map(network_size, shapes), strict=True)
    ]
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] < 0.05


def test_batches_fit_into_memory_and_add_up_to_the_papers() -> None:
    for config, machine in ((SMOLLM2, LAPTOP), (QWEN3_1_7B, GPU), (QWEN3_8B, GPU)):
        recipe = Recipe.of(BaseShape.of(config), ROWS, machine)
        assert recipe.batch_size * recipe.accumulate == 64
        assert not recipe.checkpointing
    small, large = (Recipe.of(BaseShape.of(QWEN3_1_7B), ROWS, replace(GPU, memory_bytes=gib * GIB)) for gib in (12, 76))
    assert small.batch_size < large.batch_size
    tight = Recipe.of(BaseShape.of(QWEN3_8B), ROWS, replace(GPU, memory_bytes=18 * GIB))
    assert tight.checkpointing
    assert tight.batch_size == 1
    assert memory_needed(BaseShape.of(QWEN3_8B), GPU) > 30 * GIB


def test_latents_and_steps_follow_the_chains_and_the_rows() -> None:
    assert [latents_for(tokens) for tokens in (10, 240, 600, 1900, 9000)] == [16, 16, 32, 128, 128]
    assert steps_for(200_000, 64, "cuda") == 9375  # three epochs, as in the paper
    assert steps_for(8_000, 64, "cuda") == 1000
    assert steps_for(400, 64, "cpu") == 188  # thirty


def test_a_slow_machine_fits_its_router_on_fewer_chains_and_short_data_on_what_there_is() -> None:
    shape, slow = BaseShape.of(SMOLLM2), Costs(question_seconds=1.0, chain_tokens_a_second=100.0, reply_seconds=0.5)
    recipe = Recipe.of(shape, ROWS, LAPTOP, slow)
    assert recipe.fit_questions < 300
    assert recipe.explicit_questions < 40
    assert Recipe.of(shape, replace(ROWS, train=50, held_out=4), LAPTOP, slow).fit_questions == 54


def test_hours_make_a_training_shorter_and_never_longer() -> None:
    shape, costs = BaseShape.of(QWEN3_1_7B), Costs(question_seconds=0.05, chain_tokens_a_second=3000.0, reply_seconds=0.1)
    recipe = Recipe.of(shape, ROWS, GPU, costs)
    assert recipe.within(1000, costs, ROWS) == recipe
    shorter = recipe.within(1.5, costs, ROWS)
    assert shorter.steps < recipe.steps
    assert shorter.trace_questions < recipe.trace_questions
    assert sum(shorter.seconds(costs, ROWS).values()) < 1.6 * 3600


def test_chains_stay_within_the_window_of_the_base() -> None:
    short = BaseShape.of(DEMO | {"max_position_embeddings": 512})
    recipe = Recipe.of(short, replace(MADE, longest_chain_tokens=900), LAPTOP)
    assert recipe.max_prompt_tokens + recipe.max_thinking_tokens <= 512
