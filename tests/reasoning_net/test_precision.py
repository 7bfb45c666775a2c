import pytest
import torch

from reasoning_net.precision import autocast, compute_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_matrix_units", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_cpus_without_matrix_units_compute_in_float32(
    monkeypatch: pytest.MonkeyPatch, has_matrix_units: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_matrix_units)
    assert compute_dtype(CPU) is expected
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected


def test_gpus_compute_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert compute_dtype(torch.device("cuda")) is torch.bfloat16
