"""Reading a question in the worker: H_X → the reasoning network → z, and the probes → a verdict.

All prompts that end in a step are read together, in micro-batches of bounded size: a long prompt pads only those beside which
it still fits.

Shapes: B prompts of a micro-batch, T prompt tokens, L earlier layers, N latent tokens, d hidden size, K whole numbers.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import supports_eagle3

from reasoning_net.bundle import BundleError
from reasoning_net.lens import lens_logits
from router.policy import Scores
from router.probe import UserProbe, read_features
from router.probe_config import scores_of
from server.engine.work import Read, Think, Verdict
from server.engine.worker.hooks import Row
from server.engine.worker.networks import Networks
from server.engine.worker.pages import Pages

if TYPE_CHECKING:
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that was computed to its end."""

    request_id: str
    work: Read | Think
    states: Tensor
    """(1 + L, T, d): the final states, and those of earlier layers that the probe reads; of the T last positions, if not all
    are read."""
    token_ids: list[int]

    @property
    def length(self) -> int:
        return int(self.states.shape[1])


def micro_batches(questions: list[Question], max_padded_tokens: int) -> Iterator[list[Question]]:
    """The questions by length, so that like is padded with like, cut where prompts × longest would pass the bound."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda question: question.length):
        if batch and (len(batch) + 1) * question.length > max_padded_tokens:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


class Reader:
    """Collects hidden states, chunk by chunk, and thinks where a prompt ends."""

    def __init__(
        self, runner: "GPUModelRunner", networks: Networks, numbers: dict[int, int], keep: Callable[[str, Tensor], None]
    ) -> None:
        """`numbers`: the tokens that are whole numbers. `keep` gets the latents (N, d) of a key."""
        self._runner, self._keep = runner, keep
        self._numbers = list(numbers.values())
        tokens = torch.tensor(list(numbers), dtype=torch.long, device=runner.device)
        self._number_embeddings = runner.model.embed_input_ids(tokens)  # (K, d)
        self.readings: dict[str, tuple[list[int], list[float], float]] = {}  # key → what its latents say, until it is asked for
        self._most_readings = 4 * runner.max_num_reqs
        self._net, self._probe, self._dtype = networks.net, networks.probe, networks.dtype
        self._user_probes = networks.user_probes
        self._max_padded_tokens = networks.max_padded_tokens
        self.layers = networks.layers
        if self.layers and not supports_eagle3(runner.model):
            raise BundleError(f"vLLM gives no earlier layers of a {type(runner.model).__name__}. Fit a probe without --layers.")
        self.kept_states: dict[str, Tensor] = {}  # key → H_X, (T, d), of requests that asked for it
        self._pages = Pages(runner, networks.num_states) if networks.num_states else None
        self._window = networks.prompt_window
        self._verdicts: dict[str, Verdict] = {}  # of requests whose first token is not sampled yet
        self._reads = self._steps_with_reads = 0

    def counts(self) -> dict[str, int]:
        return {"reads": self._reads, "steps_with_reads": self._steps_with_reads}

    @property
    def has_pages(self) -> bool:
        return self._pages is not None

    def has_latents(self, request_id: str) -> bool:
        """Unless it was found out that they cannot be used."""
        verdict = self._verdicts.get(request_id)
        return verdict is None or verdict.latents_are_finite

    def forget(self, request_id: str) -> None:
        """The request has ended; its verdict may not have been asked for."""
        self._verdicts.pop(request_id, None)

    @torch.inference_mode()
    def read(self, ended: list[Row], hidden_states: Tensor) -> None:
        """Keep the step's states, (1 + L, T, d); compute verdicts and latents of the questions that end in it."""
        if self._pages is not None:
            self._pages.write(hidden_states)
        if self._net is None and self._probe is None and not self._user_probes:
            # The first token's own log-probabilities are the signal; states are wanted by the parity check alone.
            ended = [row for row in ended if isinstance(row.work, Read) and row.work.keep_states]
        if not ended:
            return
        self._steps_with_reads += 1
        self._reads += len(ended)
        for batch in micro_batches([self._question(row, hidden_states) for row in ended], self._max_padded_tokens):
            self._think(batch)

    def _question(self, row: Row, hidden_states: Tensor) -> Question:
        assert isinstance(row.work, Read | Think)
        length = row.question_length
        keeps = isinstance(row.work, Read) and row.work.keep_states
        if self._pages is None:
            states = hidden_states[:, row.first if keeps else row.end - 1 : row.end]
        else:
            first = max(0, length - self._window) if self._window and not keeps else 0
            states = self._pages.read(row.index, first, length)
        return Question(row.request_id, row.work, states, list(row.prompt_token_ids[:length]))

    def _think(self, batch: list[Question]) -> None:
        """The network and the probe, once for a micro-batch."""
        started = time.perf_counter()
        states, mask = _padded(batch)
        z = self._latents(batch, states[:, 0], mask)
        # Reading a value waits for a GPU, so the times are those of the work.
        finite = z.isfinite().all(dim=(1, 2)).tolist() if z is not None else [True] * len(batch)
        thought = time.perf_counter()
        scores = self._scores(states, mask, z)
        network_seconds, probe_seconds = thought - started, time.perf_counter() - thought
        for index, question in enumerate(batch):
            work = question.work
            if isinstance(work, Read) and work.keep_states:
                self.kept_states[work.key] = question.states[0]
            self._verdicts[question.request_id] = Verdict(finite[index], network_seconds, probe_seconds, scores[index])
            if z is not None and work.num_latents and finite[index]:
                # A latent is a function of the latents before it only: fewer of them are a prefix.
                self._keep(work.key, z[index, : work.num_latents].clone())
                if work.explains:
                    self._explain(work.key, z[index, : work.num_latents])

    def _explain(self, key: str, z: Tensor) -> None:
        """Keep what each latent (N, d) says. Whoever left before asking for it leaves it to be the oldest."""
        started = time.perf_counter()
        probabilities, nearest = lens_logits(z, self._number_embeddings).softmax(-1).max(-1)
        values = [self._numbers[index] for index in nearest.tolist()]
        self.readings[key] = values, probabilities.tolist(), time.perf_counter() - started
        if len(self.readings) > self._most_readings:
            del self.readings[next(iter(self.readings))]

    def _latents(self, batch: list[Question], hidden_states: Tensor, mask: Tensor) -> Tensor | None:
        """z (B, N, d) from the final states (B, T, d)."""
        num_latents = max(question.work.num_latents for question in batch)
        if self._net is None or not num_latents:
            return None
        embeddings = self._embed(batch, mask) if self._net.config.reads_embeddings else hidden_states
        return self._net(hidden_states.to(self._dtype), embeddings.to(self._dtype), mask, num_latents)

    def _embed(self, batch: list[Question], mask: Tensor) -> Tensor:
        """E_X of the prompts, (B, T, d), padded on the left."""
        ids = mask.new_zeros(mask.shape, dtype=torch.long)
        for index, question in enumerate(batch):
            ids[index, mask.shape[1] - question.length :] = torch.tensor(question.token_ids[-question.length :])
        return self._runner.model.embed_input_ids(ids.flatten()).view(*mask.shape, -1)

    def _scores(self, states: Tensor, mask: Tensor, z: Tensor | None) -> list[Scores]:
        latents = None if z is None else z.float()
        if self._probe is None or (z is None and "latents" in self._probe.config.features):
            scores = [Scores()] * len(states)
        else:
            features = self._probe.features(states.float(), mask, latents)
            found = self._probe.scores(features)
            columns = torch.stack([*found.values()]).tolist()  # one copy from a GPU, not one an output
            scores = scores_of(dict(zip(found, columns, strict=True)))
        if not self._user_probes:
            return scores
        by_name = dict[str, list[float]]()
        for probe in self._user_probes:
            by_name |= self._of_user_probe(probe, states[:, :1].float(), mask, latents)
        return [replace(one, probes={name: values[row] for name, values in by_name.items()}) for row, one in enumerate(scores)]

    @staticmethod
    def _of_user_probe(probe: UserProbe, states: Tensor, mask: Tensor, z: Tensor | None) -> dict[str, list[float]]:
        """Its outputs by name, a value a question; NaN where latents are wanted, and there are none."""
        config = probe.file.config
        if z is None and "latents" in config.features:
            return {name: [math.nan] * len(states) for name in config.outputs}
        columns = probe(read_features(config.features, states, mask, z)).T.tolist()
        return dict(zip(config.outputs, columns, strict=True))

    def write_verdicts(self, rows: list[Row], output: "SamplerOutput") -> None:
        """Into the log-probabilities of their rows, after the sampled token's own."""
        for row in rows:
            if row.reached < row.length or (verdict := self._verdicts.pop(row.request_id, None)) is None:
                continue
            assert output.logprobs_tensors is not None, "whoever reads asks for log-probabilities"
            first = row.index * output.sampled_token_ids.shape[1]  # where drafts are checked a request has several rows
            values = torch.tensor(verdict.values(), device=output.logprobs_tensors.logprobs.device)
            output.logprobs_tensors.logprobs[first, 1 : 1 + len(values)] = values
            # Ids of their own for the whole row: by id they become a dict, in which a real token would replace a value.
            ids = output.logprobs_tensors.logprob_token_ids
            others = torch.arange(1, ids.shape[1], dtype=ids.dtype, device=ids.device)
            ids[first, 1:] = (ids[first, 0] + others) % self._runner.model_config.get_vocab_size()


def _padded(batch: list[Question]) -> tuple[Tensor, Tensor]:
    """The states, (B, 1 + L, T, d), padded on the left, and the mask, (B, T)."""
    layers, length, size = batch[-1].states.shape  # by length: the last is the longest
    states = batch[0].states.new_zeros(len(batch), layers, length, size)
    mask = torch.zeros(len(batch), length, dtype=torch.bool, device=states.device)
    for index, question in enumerate(batch):
        states[index, :, length - question.length :] = question.states
        mask[index, length - question.length :] = True
    return states, mask
