"""`/ready`: a warm-up request in each mode, and a check that the engine sees what training saw."""

import logging
from dataclasses import asdict, dataclass, field

import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from torch import Tensor
from torch.nn.functional import cosine_similarity
from vllm import SamplingParams

from reasoning_net.bundle import Bundle
from router.soft import SoftThinking
from server.engine.modes import registered
from server.engine.seam import HybridEngine
from server.http.admission import Admission
from server.observe.record import Ask, Record, current

logger = logging.getLogger("vllm.latentserve.readiness")
MIN_SIMILARITY = 0.99  # cosine; other dtypes and kernels stay above it, another base or tokenizer far below


@dataclass(slots=True)
class Readiness:
    """What `/ready` says."""

    ready: bool = False
    warm_modes: list[str] = field(default_factory=list)
    parity: float | None = None
    """The least cosine similarity between the engine's hidden states and latents, and the bundle's."""
    problem: str | None = None

    def mount(self, app: FastAPI, engine: HybridEngine, admission: Admission) -> None:
        @app.get("/ready")
        async def ready() -> JSONResponse:
            details = asdict(self) | {"router_drift_psi": engine.hybrid.router.drift.psi}
            if admission.is_draining or engine.errored:
                problem = "The server is shutting down." if admission.is_draining else "The engine has died."
                details |= {"ready": False, "problem": problem}
            return JSONResponse(details, 200 if details["ready"] else 503)

    async def check(self, engine: HybridEngine, bundle: Bundle | None, modes: list[str]) -> None:
        """Warm up, compare, and open the gate. A bundle that does not match keeps it closed, with the figure."""
        try:
            parity = bundle.parity() if bundle else None
            reserved = bundle.manifest.layout.placeholder_token_id if bundle else None
            prompt = parity["prompt_token_ids"].tolist() if parity else [token for token in (1, 2, 3) if token != reserved]
            for mode in modes:
                await _warm_up(engine, prompt, mode)
                self.warm_modes.append(mode)
            if parity:
                self.parity = await _parity(engine, prompt, parity)
                if self.parity < MIN_SIMILARITY:
                    raise ValueError(
                        f"the engine's hidden states or latents differ from the bundle's (cosine {self.parity:.3f} < "
                        f"{MIN_SIMILARITY}): was the bundle trained on this checkpoint, with this dtype and quantisation?"
                    )
            self.ready = True
        except Exception as error:
            self.problem = str(error) or repr(error)
            logger.exception("Not ready.")


async def _warm_up(engine: HybridEngine, prompt: list[int], mode: str) -> None:
    current.set(Record(Ask(mode, soft=SoftThinking() if registered()[mode].needs_mixtures else None)))
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    async for _ in engine.generate({"type": "token", "prompt_token_ids": prompt}, params, f"warm-up-{mode}"):
        pass


async def _parity(engine: HybridEngine, prompt: list[int], expected: dict[str, Tensor]) -> float:
    latents = expected.get("latents")
    states, z = await engine.inspect(prompt, 0 if latents is None else len(latents))
    pairs = [(torch.tensor(states[-1:]), expected["hidden_state"][None])]
    if latents is not None:
        pairs.append((torch.tensor(z), latents))
    return min(float(cosine_similarity(ours, theirs.float(), dim=-1).min()) for ours, theirs in pairs)
