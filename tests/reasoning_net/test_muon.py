import torch

from reasoning_net.muon import Muon, orthogonal


def test_updates_are_those_of_torch() -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 16), (16, 24), (24, 16))]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.1, weight_decay=0.05),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="original"),
    )
    for _ in range(3):
        gradients = [torch.randn_like(tensor) for tensor in start]
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
            optimizer.step()
    for before, mine, reference in zip(start, ours, theirs, strict=True):
        torch.testing.assert_close(mine - before, reference - before, atol=0.01, rtol=0.05)  # theirs is in bf16


def test_a_matrix_without_a_gradient_stays() -> None:
    param = torch.nn.Parameter(torch.ones(4, 4))
    Muon([param], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(param, torch.ones(4, 4))


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 32, 12)).float())
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5
