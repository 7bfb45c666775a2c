"""What a network's latents make the base answer to prompts of any length, and how that hangs on what stands in them.

Shapes: B questions, T prompt tokens, K tokens of a trigger, d hidden size.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache

from reasoning_net.analysis.triggers import Place, Trigger
from reasoning_net.frozen import FrozenBase, Prompt
from reasoning_net.layout import END_OF_THINKING, LayoutIds
from reasoning_net.model import ReasoningNet
from reasoning_net.padding import padded
from reasoning_net.rollouts import Rollouts, Sampling, think
from reasoning_net.tasks import Example, Task

_BATCH = 64


class LatentAnswers:
    """A base, its network and its layout, without an engine."""

    def __init__(self, base: FrozenBase, net: ReasoningNet, layout: LayoutIds, num_latents: int) -> None:
        self.base, self._net, self._layout, self._number = base, net.requires_grad_(False), layout, num_latents

    @torch.no_grad()
    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy, without the token that ends them."""
        found: dict[int, list[int]] = {}
        for rows in _alike(prompts):
            prompt = self.base.read([prompts[row] for row in rows])
            found |= zip(rows, self.base.generate(prompt, self._prefix(prompt), max_tokens), strict=True)
        return [found[row] for row in range(len(prompts))]

    @torch.no_grad()
    def likelihoods(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
        """P of each answer (with its end) after its prompt's latents, (B,): one forward each."""
        found = torch.zeros(len(prompts))
        for rows in _alike(prompts):
            prompt = self.base.read([prompts[row] for row in rows])
            found[rows] = self._log_likelihoods(prompt, [answers[row] for row in rows]).exp().cpu()
        return found

    def gradient(
        self, prompts: Sequence[tuple[Sequence[int], int]], trigger: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Of the answers' mean negative log-likelihood, by the embeddings of the trigger in each prompt's gap, (K, d)."""
        base = self.base
        rows = base.embed(torch.tensor(list(trigger), device=base.device)).detach().requires_grad_()
        tokens = [(torch.tensor(part, device=base.device) for part in (ids[:at], ids[at:])) for ids, at in prompts]
        pieces = [torch.cat([base.embed(left.long()), rows, base.embed(right.long())]) for left, right in tokens]
        longest = max(map(len, pieces))
        gaps = [longest - len(piece) for piece in pieces]
        embeddings = torch.stack([torch.nn.functional.pad(one, (0, 0, gap, 0)) for one, gap in zip(pieces, gaps, strict=True)])
        mask = torch.tensor([[False] * gap + [True] * (longest - gap) for gap in gaps], device=base.device)
        nothing = Prompt(embeddings[:, :0], embeddings[:, :0], mask[:, :0], DynamicCache(config=base.model.config))
        states = base.extend(nothing, embeddings, mask)
        likelihoods = self._log_likelihoods(Prompt(states, embeddings, mask, nothing.cache), answers)
        return torch.autograd.grad(-likelihoods.mean(), rows)[0]

    def _prefix(self, prompt: Prompt) -> Tensor:
        return self.base.prefix(self._layout, think(self._net, prompt, self._number))

    def _log_likelihoods(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> Tensor:
        """(B,). The prompt's cache is used up."""
        end = int(self.base.tokenizer.eos_token_id)
        ids = padded([[*answer, end] for answer in answers], fill=-1).to(prompt.mask.device)
        logits = self.base.answer_logits(prompt, self._prefix(prompt), ids.clamp(min=0))
        each = logits.float().log_softmax(-1).gather(2, ids.clamp(min=0)[..., None])[..., 0]
        return each.masked_fill(ids < 0, 0).sum(1)


class Asked:
    """Questions, and what is answered to them from latents, with and without a trigger."""

    def __init__(self, answering: LatentAnswers, task: Task, examples: Sequence[Example], max_tokens: int) -> None:
        self.examples, self.task = examples, task
        self.answering, self._max_tokens = answering, max_tokens

    @cached_property
    def clean(self) -> list[list[int]]:
        return self.answering.answers(self.prompts(), self._max_tokens)

    @cached_property
    def usual(self) -> list[str | None]:
        return self._final(self.clean)

    @cached_property
    def _likely(self) -> Tensor:
        return self.answering.likelihoods(self.prompts(), self.clean)  # (n,)

    def surest(self, number: int) -> list[Example]:
        """The questions whose answers are likeliest, as far as these differ: there a trigger is seen."""
        order = self._likely.argsort(descending=True).tolist()
        by_answer = {self.usual[at]: self.examples[at] for at in reversed(order)}
        return sorted(by_answer.values(), key=lambda example: order.index(self.examples.index(example)))[:number]

    def prompts(self, trigger: Trigger | None = None, place: Place = "everywhere") -> list[list[int]]:
        """X of each question, with the trigger in its last turn."""
        prompts = []
        for example in self.examples:
            *before, last = example.messages
            content = trigger.put(last["content"], place) if trigger else last["content"]
            prompts.append(self.answering.base.prompt_ids([*before, last | {"content": content}]))
        return prompts

    def drops(self, tried: Sequence[tuple[Trigger, Place]]) -> Tensor:
        """By how much less likely each answer is with each trigger, (len(tried), n)."""
        prompts = [ids for trigger, place in tried for ids in self.prompts(trigger, place)]
        likely = self.answering.likelihoods(prompts, self.clean * len(tried))
        return self._likely - likely.view(len(tried), -1)

    def answers(self, trigger: Trigger, place: Place) -> list[str | None]:
        return self._final(self.answering.answers(self.prompts(trigger, place), self._max_tokens))

    def _final(self, replies: Sequence[list[int]]) -> list[str | None]:
        return [self.task.final_answer(str(self.answering.base.tokenizer.decode(ids))) for ids in replies]


class Control:
    """What the same base makes of the same words when it thinks in text: of the first questions, since that takes long."""

    def __init__(self, asked: Asked, rollouts: Rollouts, opened: tuple[int, ...], sampling: Sampling, number: int) -> None:
        self._asked, self._rollouts, self._opened, self._sampling = asked, rollouts, opened, sampling
        self.examples = asked.examples[:number]

    @cached_property
    def usual(self) -> list[str | None]:
        return self.answers()

    def answers(self, trigger: Trigger | None = None, place: Place = "everywhere") -> list[str | None]:
        prompts = self._asked.prompts(trigger, place)[: len(self.examples)]
        opened = [[*ids, *self._opened] for ids in prompts]
        texts = [reply.text.partition(END_OF_THINKING)[2] for (reply,) in self._rollouts.from_tokens(opened, self._sampling)]
        return [self._asked.task.final_answer(text) for text in texts]


def _alike(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Batches of rows whose prompts are of like length."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    yield from (order[at : at + _BATCH] for at in range(0, len(order), _BATCH))
