"""`latentserve doctor`."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import PositiveInt

from reasoning_net.options import Flat, Model
from server.doctor import as_json, table
from server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """What the server would be started with; what is not given comes from LATENTSERVE_… as it does there."""

    model: Model | None = None
    bundle: str | None = None
    """Bundle directory, or owner/name[@revision] on the hub."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the engine is to run; auto: on the GPU that torch sees, else on the CPU."""
    kv_cache_gib: PositiveInt | None = None
    """Memory for the KV cache on a CPU."""
    max_model_len: PositiveInt | None = None
    """As vLLM's flag: the longest context."""
    json: Annotated[bool, Parameter(negative="")] = False
    """As JSON."""


def doctor(*, config: Annotated[DoctorConfig | None, Flat] = None) -> None:
    from server.doctor import machine, model, software

    config = config or DoctorConfig()
    given: dict[str, Any] = {
        name: value for name in ("model", "bundle", "device", "kv_cache_gib") if (value := getattr(config, name)) is not None
    }
    settings, gpus = Settings(**given), machine.gpus()
    findings = [
        *machine.examine(settings.runs_on, gpus),
        *software.examine(settings.runs_on, settings.device, gpus),
        *model.examine(settings, settings.runs_on, gpus, config.max_model_len or (2048 if settings.is_demo else None)),
    ]
    print(as_json(findings) if config.json else table(findings))
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)
