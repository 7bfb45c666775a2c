"""Reasons read off latents, on networks whose latents are known: one tells the sum of the numbers, one always says 9."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reasoning_net.analysis.explain import (
    INPUT,
    OUTPUT,
    WRITTEN,
    WRITTEN_AFTER_MEAN,
    ExplainConfig,
    Explainer,
    Explanation,
    auroc_within,
    explain,
    joined,
    main,
    markdown,
    summarise,
)  # fmt: skip
from reasoning_net.bundle import Bundle
from reasoning_net.checker import Arithmetic
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.frozen import FrozenBase
from reasoning_net.rollouts import Reply, Sampling
from reasoning_net.stages.pack import pack
from reasoning_net.tasks import TaskSpec
from router.figures import auroc


class Telling:
    """In the place of a network: its second latent is the embedding of what `says` makes of the question's numbers."""

    def __init__(self, base: FrozenBase, says: Any) -> None:
        self._base, self._says = base, says

    def __call__(self, hidden_states: Tensor, embeddings: Tensor, mask: Tensor, num_latents: int) -> Tensor:
        ids = torch.cdist(embeddings, self._base.embed.weight[None]).argmin(-1)
        z = torch.full((len(ids), num_latents, embeddings.shape[-1]), 1e-3)
        for row, (of, seen) in enumerate(zip(ids, mask, strict=True)):
            numbers = map(int, re.findall(r"\d+", self._base.tokenizer.decode(of[seen])))
            (token,) = self._base.tokenizer.encode(f" {self._says(numbers)}", add_special_tokens=False)
            z[row, 1] = self._base.embed.weight[token]
        return z


class Engine:
    """The answers of a network that tells."""

    def from_latents(
        self, prompts: Sequence[list[int]], latents: Tensor, sampling: Sampling, *, think_on: bool = False
    ) -> list[list[Reply]]:
        text = "7 + 2 = 9.\n</think>\n" if think_on else "Tom has 9 pens."
        return [[Reply([1], text, True, 0.9)] for _ in prompts]

    def from_tokens(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Reply]]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExplainConfig:
    directory = tmp_path_factory.mktemp("explain")
    question = "Tom has {} pens. In January, he buys {} pens. How many pens does Tom have now?"
    rows = [{"question": question.format(a, b), "answer": str(a + b)} for a, b in ((7, 2), (5, 4), (6, 6))]
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSpec(str(directory / "data.jsonl"), columns="question=question,answer=answer", whole=True)
    return ExplainConfig(output=directory / "out", task=task, num_latent_tokens=3)


def explained(base: FrozenBase, bundle: Bundle, config: ExplainConfig, says: Any) -> list[Explanation]:
    layout = bundle.manifest.layout.token_ids(base.tokenizer)
    explainer = Explainer(base, Telling(base, says), layout, 3, batch_size=2)  # type: ignore[arg-type]
    found = list(explain(config, explainer, Engine(), Arithmetic()))
    return sorted(found, key=lambda explanation: "has 6" in explanation.question)  # 6 + 6 last


def test_a_step_that_follows_changes_is_verified(base: FrozenBase, bundle: Bundle, config: ExplainConfig) -> None:
    found = explained(base, bundle, config, sum)
    for explanation in found[:2]:
        (step,) = explanation.traces[INPUT]
        assert (step["latent"], step["value"], step["verified"]) == (2, 9, True)
        assert step["operation"] in ("7 + 2", "5 + 4")
        assert step["probability"] > 0.5
        assert explanation.verified[INPUT]
        assert explanation.right
        assert explanation.entailed == {WRITTEN: True, WRITTEN_AFTER_MEAN: True}
    assert not found[2].right, "6 + 6 is 12, and the answer was 9"
    assert found[2].traces[INPUT] == [], "its latents say 12: no reason for 9"
    figures = summarise(found)
    assert figures["found"][f"{INPUT}: verified"] == {"right": 1.0, "wrong": 0.0}
    assert figures["auroc"][f"the answer by the {INPUT}"] == 1.0
    assert figures["auroc"]["decodability"] == 1.0
    assert f"| {OUTPUT}: verified |" in markdown(figures)


def test_signals_within_equal_steps_and_joined() -> None:
    """One signal knows the steps alone, the other the answers; joined they are as good as that."""
    levels, right = torch.arange(400) % 4, ((torch.arange(400) // 4) % 4 != 0).float()
    right[levels == 3] = (torch.arange(100) % 2).float()
    steps, answers = 1 - levels / 5, 0.3 + 0.4 * right
    assert auroc_within(steps, right, levels) == 0.5
    assert auroc(steps, right) > 0.55
    assert auroc_within(answers, right, levels) == 1.0
    assert auroc(joined(steps, answers, right), right) == 1.0
    assert math.isnan(auroc_within(answers, torch.ones(400), levels))


def test_latents_that_always_say_the_answer_are_no_reason(base: FrozenBase, bundle: Bundle, config: ExplainConfig) -> None:
    found = explained(base, bundle, config, lambda _: 9)
    assert [bool(explanation.traces[INPUT]) for explanation in found[:2]] == [True, True]
    assert not any(explanation.verified[INPUT] for explanation in found)


def test_a_bundle_without_a_network_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    routing = pack(str(DEMO_MODEL), tmp_path / "bundle", bundle.manifest.layout)
    with pytest.raises(StageError, match="no reasoning network"):
        main(ExplainConfig(output=tmp_path / "out", bundle=routing.directory))
