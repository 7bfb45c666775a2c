"""The audit of latents: its figures, on rows made by hand; its verdict, on the shipped network and on one that is constant."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reasoning_net.analysis.latents import (
    ALL,
    DIRECT,
    MEAN,
    SWAPPED,
    SWAPPED_ALIKE,
    LatentsConfig,
    Row,
    as_loud,
    donors,
    first_match,
    following,
    main,
    stable_match,
    summarise,
    verdict,
)  # fmt: skip
from reasoning_net.bundle import Bundle
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.stages.pack import pack
from reasoning_net.tasks import LEARNT, TaskSpec


@pytest.mark.parametrize(
    ("same", "first", "stable"),
    [
        ([False] * 4, 4, 4),
        ([True] * 4, 0, 0),
        ([False, True, False, True], 1, 3),
        ([False, True, True, True], 1, 1),
        ([True], 0, 0),
    ],
)
def test_first_and_stable_match(same: list[bool], first: int, stable: int) -> None:
    assert (first_match(same), stable_match(same)) == (first, stable)


def test_donors_are_others_of_the_same_group() -> None:
    groups = [1, 1, 1, 2, 2, 3]
    whose = donors(groups, random.Random(0))
    assert all(donor != index for index, donor in enumerate(whose))
    assert all(groups[donor] == groups[index] for index, donor in enumerate(whose[:5]))
    assert sorted(whose[:3]) == [0, 1, 2]
    assert whose[5] == 0, "who is alone gets the next of all"


def test_what_replaces_a_latent_is_as_loud() -> None:
    z, other = torch.randn(2, 3, 8), torch.randn(2, 3, 8) * 7
    torch.testing.assert_close(as_loud(other, z).pow(2).mean(-1), z.pow(2).mean(-1))


def rows(right: dict[str, list[bool]], final: dict[str, list[str]]) -> list[Row]:
    """Of two questions, each the donor of the other."""
    return [
        Row(
            1,
            {SWAPPED_ALIKE: 1 - at, SWAPPED: 1 - at},
            {arm: values[at] for arm, values in right.items()},
            {arm: values[at] for arm, values in final.items()},
            {MEAN: 0.5},
            [False, True],
            [True, at == 1],
        )
        for at in range(2)
    ]


def test_figures() -> None:
    right = {
        ALL: [True, True],
        DIRECT: [False, False],
        MEAN: [False, True],
        SWAPPED_ALIKE: [False, False],
        SWAPPED: [False, False],
    }
    final = {ALL: ["1", "2"], DIRECT: ["7", "7"], MEAN: ["2", "2"], SWAPPED_ALIKE: ["2", "9"], SWAPPED: ["2", "1"]}
    many = [
        replace(row, donors={SWAPPED_ALIKE: 1 - at % 2, SWAPPED: 1 - at % 2}) for at, row in enumerate(rows(right, final) * 8)
    ]
    figures = summarise(many)
    assert (figures["necessity"], figures["carriage"], figures["verdict"]) == (0.5, 0.5, "partly")
    assert figures["follow"][SWAPPED] == {"rate": 1.0, "chance": 0.5}
    assert figures["used rows"] == [2]
    assert figures["match"] == {1: {"first": 1.0, "stable": 1.0}}
    few = summarise(rows(right, final))
    assert few["verdict"] == "ornament", "two questions show nothing"


def test_verdicts() -> None:
    assert verdict(0.9, 0.6) == "carried"
    assert verdict(0.9, 0.4) == "partly"
    assert verdict(0.1, 0.9) == "ornament"
    nobody = [replace(row, final=dict.fromkeys(row.final)) for row in rows({ALL: [True, True]}, {ALL: ["1", "1"]})]
    assert following(nobody, SWAPPED) == (0.0, 0.0)


def config(output: Path, bundle: Path) -> LatentsConfig:
    return LatentsConfig(output=output, bundle=bundle, task=TaskSpec(LEARNT), n=24, num_latent_tokens=4, batch_size=12)


def test_the_shipped_latents_are_carried_and_constant_ones_an_ornament(tmp_path: Path, bundle: Bundle) -> None:
    net, layout = bundle.reasoning_net(), bundle.manifest.layout
    assert net
    shipped = pack(str(DEMO_MODEL), tmp_path / "shipped", layout, net=net, num_latent_tokens=16)
    text = main(config(tmp_path / "audit", shipped.directory))
    assert "Latents: carried." in text
    stored = Bundle.load(shipped.directory).manifest.audit
    assert stored
    assert stored["verdict"] == "carried"
    assert stored["necessity"] > 0.8
    figures = json.loads((tmp_path / "audit" / "latents.json").read_text())
    assert figures["arms"][ALL]["right"] > 0.8 > figures["arms"][MEAN]["right"]
    assert (tmp_path / "audit" / "latents.png").read_bytes().startswith(b"\x89PNG")

    # A run that was killed in its second batch goes on behind the first, and ends where the other one did.
    answers = tmp_path / "audit" / "answers.jsonl"
    written = answers.read_text()
    answers.write_text(written[: len(written) * 2 // 3])
    assert main(config(tmp_path / "audit", shipped.directory)) == text
    assert answers.read_text() == written

    with torch.no_grad():
        net.f_in.weight.zero_()  # it does not read the question
    constant = pack(str(DEMO_MODEL), tmp_path / "constant", layout, net=net, num_latent_tokens=4)
    assert "Latents: ornament." in main(config(tmp_path / "constant audit", constant.directory))


def test_a_bundle_without_a_network_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    routing = pack(str(DEMO_MODEL), tmp_path / "bundle", bundle.manifest.layout)
    with pytest.raises(StageError, match="no reasoning network"):
        main(config(tmp_path / "audit", routing.directory))
