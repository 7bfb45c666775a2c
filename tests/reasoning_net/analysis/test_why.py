"""Answers of the demo that are followed back, and figures of explanations that were made up."""

import json
from pathlib import Path
from typing import TypeVar

import pytest

from reasoning_net.analysis.why import WhyConfig, main
from reasoning_net.analysis.why_answers import DIRECT, EXPLICIT, LATENT, Answer, Explanation, causes, readable, traced
from reasoning_net.analysis.why_figures import LINE_BEFORE, markdown, summarise
from reasoning_net.attribution import INFLUENCE, PRODUCT, SIGNALS
from reasoning_net.errors import StageError
from reasoning_net.tasks import TaskSpec

T = TypeVar("T")


def test_held_out_questions_are_explained_and_a_run_goes_on(tmp_path: Path) -> None:
    task = TaskSpec("demo:sharing")
    config = WhyConfig(output=tmp_path, task=task, n=2, batch_size=1, num_latent_tokens=4, backend="transformers", seed=3)
    said = main(config)
    path = tmp_path / "explanations.jsonl"
    written = path.read_text().splitlines()
    for line in map(json.loads, written):
        explicit, latent = line["answers"][EXPLICIT], line["answers"][LATENT]
        assert len(explicit["lines"]) == len(line["reads"])
        assert len(explicit["shares"][PRODUCT]) == len(explicit["lines"]) + 1
        first = len(line["sentences"])
        for at, shares in enumerate(explicit["shares"][INFLUENCE]):
            assert sum(shares) == pytest.approx(1, abs=0.01)
            assert not any(shares[first + at :]), "a line rests on those before it"
        assert sum(latent["rows"][PRODUCT]) == pytest.approx(1, abs=0.01)
        assert len(latent["shares"][PRODUCT]) == len(latent["rows"][PRODUCT]) == 4
        assert 0 < latent["share_beside"][PRODUCT] < 1
        assert "answer ← line" in line["text"]
        assert "answer ← latent" in line["text"]
    figures = json.loads((tmp_path / "why.json").read_text())
    assert (figures["questions"], figures["known"]) == (2, 2)
    assert figures["lines"][INFLUENCE]["first, or a line that restates its values"] > 0.7
    assert (tmp_path / "why.md").read_text() == said + "\n"
    path.write_text("".join(f"{line}\n" for line in written[:1]))
    assert main(config) == said


def test_one_question_is_explained_in_words() -> None:
    said = main(WhyConfig(question="Ann has 5 pens. In January, she finds 3 pens. How many pens does Ann have now?"))
    assert "explicit: Ann has 8 pens." in said
    assert '"she finds 3" (' in said or '"finds 3 pens." (' in said
    cut = main(WhyConfig(question="Ann has 5 pens. She finds 3 pens. How many pens does Ann have now?", max_chain_tokens=25))
    assert "explicit: no answer in time\n  answer ← " in cut
    with pytest.raises(StageError, match="empty"):
        main(WhyConfig(question=" "))
    with pytest.raises(StageError, match="--output"):
        main(WhyConfig())


def both(value: T) -> dict[str, T]:
    return dict.fromkeys(SIGNALS, value)


def explanation() -> Explanation:
    """Sentences: start, event, nothing, question. Lines: of what, at the start, event, nothing, so."""
    shares = [
        [0, 0, 0, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0.5, 0, 0, 0, 0.5, 0, 0, 0],
        [0, 0, 0.2, 0, 0, 0, 0.8, 0, 0],
        [0, 0, 0, 0, 0, 0, 0.4, 0.6, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1.0],
    ]
    phrases = [["has 5", "finds 3", "it rains", "how many"]] * 6
    lines = ["I need pens.", "At the start 5.", "5 + 3 = 8.", "Nothing changes: 8.", "So the answer is 8."]
    explicit = Answer("Ann has 8 pens.", lines, both(shares), phrases)
    direct = Answer("Ann has 9 pens.", [], both([[0.1, 0.3, 0.6, 0]]), phrases[:1])
    of = both([0.2, 0.6, 0.1, 0.1])
    latent = Answer(
        "Ann has 8 pens.", [], both([[0, 1, 0, 0], [1, 0, 0, 0]]), phrases[:2], both([0.9, 0.1]), of, of,
        both(0.25),
    )  # fmt: skip
    return Explanation(
        "Ann has 5 pens. She finds 3. It rains. How many?", 1, "counting",
        ["Ann has 5 pens.", "She finds 3.", "It rains.", "How many?"], [5, 4, 3, 3],
        {DIRECT: direct, EXPLICIT: explicit, LATENT: latent}, {DIRECT: False, EXPLICIT: True, LATENT: True},
        [[], [], [1], [2], [2]], [True, False],
    )  # fmt: skip


def test_an_answer_is_followed_as_far_as_it_goes() -> None:
    said = readable(explanation())
    assert '  line 5, "So the answer is 8." ← line 4 (0.60)' in said
    assert '  line 3, "5 + 3 = 8." ← "finds 3" (0.50)' in said
    assert "answer ← latent 1 (0.90); 25% of what goes back to the question goes beside the latents" in said
    assert '  latent 1 ← "finds 3" (1.00)' in said
    assert "latent 2 ←" not in said
    assert causes([0.1, 0.2, 0.4, 0.3]) == [2, 3]
    assert causes([0.0, 0.0]) == []
    reached = traced(explanation().answers[EXPLICIT], PRODUCT, 4)
    assert sum(reached) == pytest.approx(1)
    assert reached[1] == pytest.approx(0.5 * (0.4 + 0.6 * 0.8))


def test_explanations_are_compared_with_what_is_known() -> None:
    figures = summarise([explanation()])
    known = figures["lines"][PRODUCT]
    assert known["first"] == pytest.approx(2 / 3, abs=1e-4), "the last line points at the one that restates the value"
    assert known["first, where it is not the line before"] == 0.0
    assert known["first, or a line that restates its values"] == 1.0
    assert figures["lines"][LINE_BEFORE]["precision"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["own sentence"][PRODUCT] == 1.0
    sentences = figures["sentences"]
    assert sentences[f"{DIRECT}: {PRODUCT}"]["AUROC"] == 0.0
    assert sentences[f"{LATENT}, through the latents: {PRODUCT}"]["AUROC"] == 1.0
    assert sentences[f"{LATENT}, through the latents: {PRODUCT}"]["their share"] == pytest.approx(6 / 7, abs=1e-4)
    assert sentences["its having a number"]["AUROC"] == 1.0
    assert figures["beside"][PRODUCT] == 0.25
    said = markdown(figures)
    assert "1 of 1 chains have a line for each sentence." in said
    assert "1 questions" in said
