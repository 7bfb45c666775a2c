"""vLLM's worker for GPUs, with ours."""

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from server.engine.worker import HybridWorker


class HybridGpuWorker(HybridWorker, Worker):
    """Named in vLLM's configuration."""

    def load_model(self, *args: Any, **options: Any) -> None:
        super().load_model(*args, **options)
        self.model_runner.model_memory_usage += self.networks.num_bytes  # as weights, in vLLM's plan

    def determine_available_memory(self) -> int:
        """vLLM measures the peak of a profile run: of the model's, or of the networks', whichever is higher."""
        profile_run = self.model_runner.profile_run

        def profile_all(*args: Any, **options: Any) -> None:
            profile_run(*args, **options)
            self.networks.rehearse()

        self.model_runner.profile_run = profile_all
        try:
            return super().determine_available_memory()
        finally:
            del self.model_runner.profile_run
