import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reasoning_net import chunked
from reasoning_net.chunked import row_losses

B, Y, D, V = 3, 5, 8, 50


def nll_of(head: torch.nn.Linear) -> Callable[..., Tensor]:
    return lambda states, targets: cross_entropy(head(states).float(), targets, ignore_index=-100, reduction="none")


@pytest.mark.parametrize("rows", [1, 4, 15, 100])
def test_chunks_change_neither_losses_nor_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", rows * V)
    torch.manual_seed(0)
    head = torch.nn.Linear(D, V).requires_grad_(False)
    targets = torch.randint(V, (B, Y))
    targets[0, 3:] = -100
    weights = torch.rand(B, Y)  # whoever weighs tokens does it afterwards
    whole, pieces = (torch.randn(B, Y, D, generator=torch.manual_seed(1)).requires_grad_() for _ in range(2))
    expected = nll_of(head)(whole.flatten(0, 1), targets.flatten()).view(B, Y)
    found = row_losses(nll_of(head), V, pieces, targets)
    torch.testing.assert_close(found, expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(pieces.grad, whole.grad)
    assert bool((pieces.grad[0, 3:] == 0).all())


def test_nothing_to_learn() -> None:
    head = torch.nn.Linear(D, V).requires_grad_(False)
    with torch.no_grad():
        assert row_losses(nll_of(head), V, torch.randn(B, Y, D), torch.full((B, Y), -100)).sum() == 0
    empty = torch.randn(B, 0, D, requires_grad=True)
    row_losses(nll_of(head), V, empty, torch.zeros(B, 0, dtype=torch.long)).sum().backward()
    assert empty.grad is not None


_PEAK = """
import re, sys, torch
from pathlib import Path
from torch.nn.functional import cross_entropy
from reasoning_net import chunked
torch.set_num_threads(1)
if sys.argv[1] == "chunked":
    chunked.CHUNK_LOGITS = 2**20
else:
    chunked.CHUNK_LOGITS = 2**40
head = torch.nn.Linear(32, 50_000, bias=False).requires_grad_(False)
states, targets = torch.randn(512, 32, requires_grad=True), torch.randint(50_000, (512,))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
nll = lambda states, targets: cross_entropy(head(states).float(), targets, reduction="none")
chunked.row_losses(nll, 50_000, states, targets).mean().backward()
print((peak() - before) // 1024)
"""


def test_chunks_take_less_memory() -> None:
    """MiB at the peak, libraries included: the logits are 98, softmax and gradients as much each."""
    peaks = {}
    for how in ("whole", "chunked"):
        command = [sys.executable, "-c", _PEAK, how]
        peaks[how] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peaks["whole"] - peaks["chunked"] > 180, peaks
