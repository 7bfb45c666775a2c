import time
from pathlib import Path

import pytest
import torch
from torch import nn

from reasoning_net.errors import StageError
from reasoning_net.training import Optimizer, OptimizerConfig, Run, learning_rate_scale, run_clock


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


def test_a_run_may_be_as_long_as_the_processor_works(tmp_path: Path) -> None:
    """Time in which others have the machine does not count."""
    module = nn.Linear(2, 2)
    run = Run(tmp_path, module, Optimizer(module, OptimizerConfig()), 10, "run", seconds=0.05, clock=run_clock(processor=True))
    started, slept = time.process_time(), 0
    for _ in run.steps():
        if slept < 3:
            time.sleep(0.05)
            slept += 1
    assert slept == 3
    assert time.process_time() - started >= 0.05


def test_a_reset_optimiser_starts_as_a_new_one() -> None:
    def trained(*, is_reset: bool) -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Linear(4, 4)
        optimizer = Optimizer(module, OptimizerConfig(warmup_steps=1))
        module(torch.ones(2, 4)).square().sum().backward()
        optimizer.step(0, 0)
        if is_reset:
            optimizer.reset()
            assert not any(state["state"] for state in optimizer.state_dict())
        module(torch.randn(2, 4)).sum().backward()
        optimizer.step(1, 0.1)
        return module.weight.detach()

    assert not torch.equal(trained(is_reset=True), trained(is_reset=False))
