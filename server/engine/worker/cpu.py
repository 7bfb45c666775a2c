"""vLLM's worker for CPUs, with ours."""

from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.worker import HybridWorker


class HybridCpuWorker(HybridWorker, CPUWorker):
    """Named in vLLM's configuration."""
