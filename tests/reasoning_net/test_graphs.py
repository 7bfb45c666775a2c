from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from reasoning_net.graphs import Graphed


class Inputs(NamedTuple):
    x: Tensor
    power: int


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_replayed_step_leaves_the_gradients_of_a_step() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).cuda()

    def learn(inputs: Inputs) -> tuple[Tensor]:
        loss = (module(inputs.x) ** inputs.power).mean()
        loss.backward()
        return (loss.detach(),)

    graphed = Graphed(learn, module)
    for attempt in range(12):
        inputs = Inputs(torch.randn(4 + attempt % 2, 8, device="cuda"), 1 + attempt // 2 % 2)
        module.zero_grad(set_to_none=False)
        want = float(learn(inputs)[0])
        gradients = [parameter.grad.clone() for parameter in module.parameters()]
        module.zero_grad(set_to_none=False)
        assert float(graphed(inputs)[0]) == pytest.approx(want, rel=1e-4)
        for gradient, parameter in zip(gradients, module.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
