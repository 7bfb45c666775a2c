"""The latents of all requests in flight: kept from the pass that reads a question to the end of the pass that answers it.

Shapes: N latent tokens, d hidden size.
"""

import logging
from typing import TYPE_CHECKING

from torch import Tensor

from server.engine.work import Close, Forget, Mix, Overlay, Read, Think, TokenKinds, Work
from server.engine.worker.closings import Closings
from server.engine.worker.hooks import Row
from server.engine.worker.mixtures import Mixtures
from server.engine.worker.networks import Networks
from server.engine.worker.read import Reader

if TYPE_CHECKING:
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

logger = logging.getLogger("vllm.latentserve.worker")


class Store:
    """Latents by key. The front end's permits bound how many there are."""

    def __init__(self) -> None:
        self._latents: dict[str, Tensor] = {}  # key → (N, d)
        self._passes_left: dict[str, int] = {}  # key → engine requests that read it and have not ended

    def __len__(self) -> int:
        return len(self._latents)

    def put(self, key: str, z: Tensor) -> None:
        self._latents[key] = z

    def get(self, key: str) -> Tensor | None:
        return self._latents.get(key)

    def drop(self, key: str) -> None:
        self._latents.pop(key, None)
        self._passes_left.pop(key, None)

    def start(self, work: Overlay) -> None:
        self._passes_left.setdefault(work.key, work.copies)

    def end(self, work: Overlay) -> None:
        if work.key in self._passes_left:
            self._passes_left[work.key] -= 1
            if not self._passes_left[work.key]:
                self.drop(work.key)


class Latents:
    """The `RowState` of hybrid reasoning: `Read` rows are read, `Overlay` and `Mix` rows are written, `Think` rows both."""

    def __init__(self, runner: "GPUModelRunner", networks: Networks, kinds: TokenKinds) -> None:
        self.store, self.mixtures = Store(), Mixtures(runner, kinds.literal)
        self.closings = Closings(runner.model_config.get_vocab_size(), kinds.ends, kinds.blank, runner.device)
        self.reader = Reader(runner, networks, kinds.numbers, self.store.put)
        self.placeholder = networks.manifest.layout.placeholder_token_id if networks.manifest else None
        self.layers, self.reads_all = self.reader.layers, self.reader.has_pages
        self._lost: set[str] = set()  # requests whose latents were missing in some step

    def counts(self) -> dict[str, int]:
        return {
            "latents": len(self.store),
            "mixtures": len(self.mixtures),
            "closings": len(self.closings),
            **self.reader.counts(),
        }

    def add_request(self, work: Work) -> None:
        if isinstance(work, Overlay):
            self.store.start(work)
        elif isinstance(work, Forget):
            self.store.drop(work.key)

    def remove_request(self, request_id: str, work: Work) -> None:
        self._lost.discard(request_id)
        self.reader.forget(request_id)
        self.mixtures.forget(request_id)
        self.closings.forget(request_id)
        if isinstance(work, Overlay):
            self.store.end(work)
        elif isinstance(work, Think):
            self.store.drop(work.key)

    def prepare_inputs_embeds(self, rows: list[Row], inputs_embeds: Tensor | None) -> None:
        """Write z over the placeholder rows that this step computes (all of them, or a chunk, or those of a recomputation), and
        mixtures over those of decoded tokens."""
        if mixed := [row for row in rows if isinstance(row.work, Mix)]:
            assert inputs_embeds is not None, "the engine runs with --enable-prompt-embeds"
            self.mixtures.write(mixed, inputs_embeds)
        for row in rows:
            work = row.work
            if not isinstance(work, Overlay | Think):
                continue
            begin = max(work.start, row.computed)  # positions in the prompt
            stop = min(work.start + work.num_latents, row.reached)
            if begin >= stop:
                continue
            z = self.store.get(work.key)
            if z is None or inputs_embeds is None:
                # Never answer from placeholders: the first token tells the engine to fail this request, or the verdict to
                # answer in another way.
                if self.reader.has_latents(row.request_id):
                    logger.error("The latents of request %s are not in the worker.", row.request_id)
                self._lost.add(row.request_id)
                continue
            at = slice(row.first + begin - row.computed, row.first + stop - row.computed)
            inputs_embeds[at] = z[begin - work.start : stop - work.start].to(inputs_embeds.dtype)

    def read_hidden_states(self, rows: list[Row], hidden_states: Tensor) -> None:
        self.reader.read([row for row in rows if self._ends_question(row)], hidden_states)

    def _ends_question(self, row: Row) -> bool:
        """Whether the step computes the last token of a question that is to be read; after a preemption it is read already."""
        to_read = isinstance(row.work, Read) or (isinstance(row.work, Think) and self.store.get(row.work.key) is None)
        return to_read and row.computed < row.question_length <= row.reached

    def prepare_logits(self, rows: list[Row], logits: Tensor) -> None:
        if mixed := [row for row in rows if isinstance(row.work, Mix)]:
            self.mixtures.mix(mixed, logits)
        if closing := [row for row in rows if isinstance(row.work, Close)]:
            self.closings.close(closing, logits)

    def write_samples(self, rows: list[Row], output: "SamplerOutput") -> None:
        """Verdicts into their rows' log-probabilities; the reserved token, which nobody samples, where latents were lost."""
        for row in rows:
            if row.request_id in self._lost:
                output.sampled_token_ids[row.index] = self.placeholder
        self.reader.write_verdicts(rows, output)
        self.mixtures.keep(output.sampled_token_ids)
        self.closings.keep(output)
