"""How a base thinks, found out from its tokenizer; and settings that would do nothing for it."""

from argparse import Namespace
from pathlib import Path

import pytest

from reasoning_net.bundle import Bundle
from router.policy import Mode
from server.engine.base import Base, base_of
from server.engine.errors import ConfigurationError
from server.settings import DEMO_MODEL, Settings
from tests.bases import Tags, write_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Tags, Path]:
    directory = tmp_path_factory.mktemp("bases")
    return {tags: write_base("llama", directory / tags, tags) for tags in ("tokens", "text", "none")}


def served(model: Path, bundle: Bundle | None = None, parser: str = "", **settings: object) -> tuple[Base, Namespace]:
    args = Namespace(model=str(model), tokenizer=None, chat_template=None, reasoning_parser=parser)
    return base_of(args, Settings(model=str(model), **settings), bundle), args


def test_a_parser_is_for_bases_that_think(bases: dict[Tags, Path], bundle: Bundle) -> None:
    found = {tags: served(path) for tags, path in bases.items()}
    assert [args.reasoning_parser for _, args in found.values()] == ["qwen3", "qwen3", ""]
    assert [base.ends_chains for base, _ in found.values()] == [True, False, False]
    assert [base.layout.thinks_in_text for base, _ in found.values()] == [True, True, False]
    assert "as several tokens" in str(found["text"][0].advice)
    assert served(DEMO_MODEL, bundle)[1].reasoning_parser == bundle.manifest.reasoning_parser
    assert served(bases["tokens"], parser="deepseek_r1")[1].reasoning_parser == "deepseek_r1", "the operator's"


def test_a_parser_that_does_not_fit_is_one_sentence(bases: dict[Tags, Path]) -> None:
    with pytest.raises(ConfigurationError, match="deepseek_r1 does not fit this base"):
        served(bases["none"], parser="deepseek_r1")


def test_a_thinking_prompt_makes_explicit_another_mode(bases: dict[Tags, Path]) -> None:
    base, args = served(bases["none"], thinking_prompt="Let's think.")
    assert (base.layout.explicit, base.layout.thinks_in_text, args.reasoning_parser) == ("Let's think.", True, "")
    assert "a chain and its answer are both the content" in str(base.advice)
    assert base.default_mode(Settings()) is Mode.AUTO
    silent, _ = served(bases["none"])
    assert silent.default_mode(Settings()) is Mode.DIRECT


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"max_thinking_tokens": 5}, "--max-thinking-tokens"),
        ({"effort_budgets": "low=5"}, "--effort-budgets"),
        ({"answer_reserve_tokens": 5}, "--answer-reserve-tokens"),
        ({"exits": "always"}, "--exits always"),
        ({"helper": "http://localhost"}, "--helper"),
        ({"soft_thinking": True}, "--soft-thinking"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(bases: dict[Tags, Path], settings: dict[str, object], flag: str) -> None:
    served(bases["tokens"], **settings)
    for tags, why in (("text", "as several tokens"), ("none", "has no think tags")):
        with pytest.raises(ConfigurationError, match=rf"{flag} needs .* {why}"):
            served(bases[tags], thinking_prompt="Let's think.", **settings)


def test_a_default_mode_that_there_is_not(bases: dict[Tags, Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"--default-mode explicit .* --thinking-prompt"):
        served(bases["none"], default_mode="explicit")


def test_a_base_without_a_template_is_served_for_completions(bases: dict[Tags, Path], tmp_path: Path) -> None:
    model = write_base("llama", tmp_path / "base", "none")
    (model / "chat_template.jinja").unlink()
    base, _ = served(model)
    assert base.layout.think_tags is not None, "nobody can say more of it"
