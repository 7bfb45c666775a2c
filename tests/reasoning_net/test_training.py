import pytest
import torch
from torch import nn

from reasoning_net.errors import StageError
from reasoning_net.training import Optimizer, OptimizerConfig, learning_rate_scale


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_warms_up_and_decays(schedule: str) -> None:
    config = OptimizerConfig(warmup_steps=10, schedule=schedule)
    scales = [learning_rate_scale(step, step / 100, config) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert max(scales) == pytest.approx(1.0, abs=1e-3)
    assert scales[50:] == sorted(scales[50:], reverse=True)
    assert scales[-1] < 0.03


def test_a_loss_that_is_not_a_number_stops_the_run_and_spoils_nothing() -> None:
    module = nn.Linear(4, 4)
    before = module.weight.detach().clone()
    optimizer = Optimizer(module, OptimizerConfig())
    for step in range(20):
        (module(torch.randn(2, 4)).sum() * float("nan")).backward()
        if step < 19:
            optimizer.step(step, step / 100)
    with pytest.raises(StageError, match="not finite in 20 steps in a row"):
        optimizer.step(19, 0.19)
    torch.testing.assert_close(module.weight.detach(), before)
