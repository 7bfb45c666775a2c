"""CUDA graphs of training steps: small networks on a fast GPU wait for launches more than for arithmetic."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_WARM_UPS = 2


def compile_parts(*modules: nn.Module) -> None:
    """Compile the norms and MLPs of these modules, in place: their many small kernels become few.

    Layers as a whole would be compiled anew for every cache that they append to.
    """
    torch._dynamo.config.recompile_limit = 64
    for module in (part for whole in modules for part in whole.modules()):
        if type(module).__name__.endswith(("RMSNorm", "MLP")):
            module.compile(dynamic=True)


class Graphed:
    """A function of a named tuple (of tensors and plain values) that leaves gradients in `module`, replayed as one graph for
    each set of shapes that comes often.

    The gradients live in buffers that are never replaced: clear them with `zero_grad(set_to_none=False)`.
    """

    def __init__(self, function: Callable[[Any], Sequence[Tensor]], module: nn.Module) -> None:
        self._function = function
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any, Sequence[Tensor]]] = {}
        self._seen: Counter[Hashable] = Counter()
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: Any) -> Sequence[Tensor]:
        """What the function returns, detached; a captured result is overwritten by the next call of its shapes."""
        key = tuple(part.shape if isinstance(part, Tensor) else part for part in batch)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if key in self._graphs:
                graph, inputs, outputs = self._graphs[key]
                for mine, new in zip(inputs, batch, strict=True):
                    if isinstance(mine, Tensor):
                        mine.copy_(new)
                graph.replay()
            elif self._seen[key] < _WARM_UPS:
                self._seen[key] += 1
                outputs = self._function(batch)
            else:
                graph, inputs = torch.cuda.CUDAGraph(), type(batch)(*(p.clone() if isinstance(p, Tensor) else p for p in batch))
                # Other threads, such as those that fetch batches, may use the GPU meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    outputs = self._function(inputs)
                graph.replay()  # capturing computes nothing
                self._graphs[key] = graph, inputs, outputs
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs
