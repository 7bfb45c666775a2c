"""Our part of vLLM's worker: what is mixed into its classes, in `cpu` and `cuda`.

Under tensor parallelism every rank computes the same z from the same (all-gathered) hidden states.
"""

import logging
from typing import TYPE_CHECKING, Any

from server.engine.work import TokenKinds
from server.engine.worker.hooks import Hooks
from server.engine.worker.latents import Latents
from server.engine.worker.lifetime import follow_parent
from server.engine.worker.networks import Networks
from server.engine.worker.pages import share_of_pages

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker as _Worker
else:
    _Worker = object

logger = logging.getLogger("vllm.latentserve.worker")


class HybridWorker(_Worker):
    """Mixed into vLLM's worker class; `collective_rpc` calls its methods by name."""

    latentserve: Latents
    latentserve_hooks: Hooks
    networks: Networks

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        follow_parent()  # before the model is loaded

    def load_model(self, *args: Any, **options: Any) -> None:
        super().load_model(*args, **options)
        self.networks = Networks(self.vllm_config, self.model_runner.device, self.model_runner.dtype)

    def determine_available_memory(self) -> int:
        """For the KV cache: without what the pages of hidden states beside it will take."""
        available = int(super().determine_available_memory())
        if not self.networks.num_states:
            return available
        hidden_size, dtype = self.model_config.get_hidden_size(), self.model_runner.dtype
        share = share_of_pages(self.get_kv_cache_spec(), self.networks.num_states, hidden_size, dtype.itemsize)
        logger.info("Hidden states take %.1f MiB beside the KV cache (%.1f %%).", available * share / 2**20, 100 * share)
        return int(available * (1 - share))

    def latentserve_install(self, kinds: dict[str, Any]) -> None:
        """Hook into the model runner. Called once, before the first request. `kinds`: `TokenKinds`, as it travels."""
        self.latentserve = Latents(self.model_runner, self.networks, TokenKinds(**kinds))
        self.latentserve_hooks = Hooks(self.model_runner, self.latentserve)

    def latentserve_drop(self, key: str) -> None:
        """Forget the latents of a request that will not be answered (the client left between the two passes)."""
        self.latentserve.store.drop(key)

    def latentserve_state(self) -> dict[str, Any]:
        """Counts for tests and debugging."""
        return self.latentserve.counts() | {"preemptions": self.latentserve_hooks.preemptions}

    def latentserve_reading(self, key: str) -> tuple[list[int], list[float], float] | None:
        """What the latents of a pass that `explains` say: a whole number a row, its probability, and the seconds that it took
        to find out. Given once; None where there is nothing to give."""
        return self.latentserve.reader.readings.pop(key, None)

    def latentserve_mixtures(self, key: str) -> tuple[int, float, int] | None:
        """How a chain in mixtures went: steps in mixtures, their summed entropy in nats, switches. Given once."""
        return self.latentserve.mixtures.summary(key)

    def latentserve_inspect(self, key: str) -> tuple[list[list[float]], list[list[float]] | None]:
        """H_X (T, d), and z (N, d) where there is a network, of a `Read` that asked to keep them."""
        states, z = self.latentserve.reader.kept_states.pop(key), self.latentserve.store.get(key)
        return states.float().tolist(), None if z is None else z.float().tolist()
