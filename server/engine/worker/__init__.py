"""Our part of vLLM's worker.

`HybridWorker` is vLLM's `worker_extension_cls`: its methods become methods of the worker that `collective_rpc` calls. Under
tensor parallelism every rank computes the same z from the same (all-gathered) hidden states.
"""

from typing import TYPE_CHECKING, Any

from reasoning_net.bundle import Bundle
from server.engine.worker.hooks import Hooks
from server.engine.worker.latents import Latents
from server.engine.worker.lifetime import follow_parent

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class HybridWorker:
    """Mixed into vLLM's worker class."""

    if TYPE_CHECKING:
        model_runner: GPUModelRunner
        latentserve: Latents
        latentserve_hooks: Hooks

    def latentserve_install(self, bundle: str | None) -> None:
        """Load the bundle and hook into the model runner. Called once, before the first request."""
        follow_parent("VllmWorker")
        self.latentserve = Latents(self.model_runner, Bundle.load(bundle) if bundle else None)
        self.latentserve_hooks = Hooks(self.model_runner, self.latentserve)

    def latentserve_drop(self, key: str) -> None:
        """Forget the latents of a request that will not be answered (the client left between the two passes)."""
        self.latentserve.store.drop(key)

    def latentserve_state(self) -> dict[str, Any]:
        """Counts for tests and debugging."""
        return self.latentserve.counts() | {"preemptions": self.latentserve_hooks.preemptions}

    def latentserve_inspect(self, key: str) -> tuple[list[list[float]], list[list[float]] | None]:
        """H_X (T, d), and z (N, d) where there is a network, of a `Read` that asked to keep them."""
        states, z = self.latentserve.reader.kept_states.pop(key), self.latentserve.store.get(key)
        return states.float().tolist(), None if z is None else z.float().tolist()
