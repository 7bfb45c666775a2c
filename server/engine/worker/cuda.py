"""vLLM's worker for GPUs, with ours."""

from vllm.v1.worker.gpu_worker import Worker

from server.engine.worker import HybridWorker


class HybridGpuWorker(HybridWorker, Worker):
    """Named in vLLM's configuration."""
