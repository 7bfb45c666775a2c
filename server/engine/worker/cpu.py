"""vLLM's worker for CPUs, with ours."""

from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.worker import HybridWorker


class HybridCpuWorker(HybridWorker, CPUWorker):
    """Named in vLLM's configuration."""

    def determine_available_memory(self) -> int:
        """vLLM looks at what the process has taken so far."""
        self.networks.rehearse()
        return super().determine_available_memory()
