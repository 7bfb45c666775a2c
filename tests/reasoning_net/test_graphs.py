from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from reasoning_net.graphs import Graphed, compile_parts


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


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, while it compiles
def test_compiled_parts_compute_what_they_did() -> None:
    plain, compiled = (nn.Sequential(nn.Linear(8, 8), Qwen3RMSNorm(8)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    names = list(compiled.state_dict())
    compile_parts(compiled)
    assert compiled[1]._compiled_call_impl is not None
    assert compiled[0]._compiled_call_impl is None
    assert list(compiled.state_dict()) == names  # checkpoints stay what they are
    for rows in (3, 5):
        x = torch.randn(2, rows, 8)
        plain(x).sum().backward()
        compiled(x).sum().backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
