from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.v1.worker.gpu_worker import Worker

from reasoning_net.bundle import Bundle
from router.user_probe import ProbeFile, read_probes
from server.engine.worker import HybridWorker
from server.engine.worker.cuda import HybridGpuWorker
from server.engine.worker.networks import Networks, with_networks

CPU = torch.device("cpu")


def networks(bundle: Bundle | None, max_model_len: int = 64, probes: Sequence[ProbeFile] = ()) -> Networks:
    config: Any = SimpleNamespace(additional_config={}, model_config=SimpleNamespace(max_model_len=max_model_len))
    with_networks(config, bundle, probes)
    return Networks(config, CPU, torch.float32)


@pytest.mark.parametrize(("max_model_len", "expected"), [(64, (16, 64)), (2048, (4, 256))])  # the demo's network reads 256
def test_the_largest_micro_batch_is_rehearsed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, max_model_len: int, expected: tuple[int, int]
) -> None:
    ours, masks = networks(bundle, max_model_len), list[torch.Tensor]()
    assert ours.net is not None
    monkeypatch.setattr(ours.net, "forward", lambda states, embeddings, mask: masks.append(mask))
    ours.rehearse()
    assert [tuple(mask.shape) for mask in masks] == [expected]


def test_without_a_bundle_there_is_nothing_to_plan_for() -> None:
    ours = networks(None)
    ours.rehearse()
    assert (ours.num_bytes, ours.num_states, ours.net, ours.probe) == (0, 0, None, None)


def test_a_probe_of_a_mean_has_every_position_kept(bundle: Bundle, tmp_path: Path) -> None:
    save_file(torch.nn.Linear(192, 1).state_dict(), tmp_path / "last.safetensors", {"features": "last"})
    save_file(torch.nn.Linear(192, 1).state_dict(), tmp_path / "mean.safetensors", {"features": "mean"})
    last, mean = read_probes([tmp_path / "last.safetensors", tmp_path / "mean.safetensors"])
    alone, both = networks(None, probes=[last]), networks(None, probes=[last, mean])
    assert (alone.num_states, both.num_states) == (0, 1)
    assert [probe.file.config.outputs for probe in both.user_probes] == [("last",), ("mean",)]
    assert alone.num_bytes == 193 * 4
    beside = networks(bundle, probes=[last]), networks(bundle, probes=[mean])
    assert [(ours.num_states, ours.prompt_window) for ours in beside] == [(1, 256), (1, None)]


def test_on_a_gpu_the_networks_are_part_of_vllms_plan(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own two figures: what the weights take, and the peak of a profile run."""

    class Runner:
        model_memory_usage = 1000
        device, dtype = CPU, torch.float32

        def profile_run(self) -> None:
            profiled.append("model")

    profiled, worker = list[str](), HybridGpuWorker.__new__(HybridGpuWorker)
    worker.model_runner, worker.networks = Runner(), networks(bundle)
    monkeypatch.setattr(HybridWorker, "load_model", lambda self: None)
    monkeypatch.setattr(Networks, "rehearse", lambda self: profiled.append("networks"))
    monkeypatch.setattr(Networks, "num_states", 0)
    monkeypatch.setattr(Worker, "determine_available_memory", lambda self: self.model_runner.profile_run() or 5000)
    worker.load_model()
    assert worker.model_runner.model_memory_usage == 1000 + worker.networks.num_bytes > 1000 + 4_000_000
    assert worker.determine_available_memory() == 5000
    assert profiled == ["model", "networks"]
    assert "profile_run" not in vars(worker.model_runner)
