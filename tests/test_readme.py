"""The pages: short enough at the front, and nothing in them points to what is not there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for folder in ("", "server", "router", "reasoning_net", "deploy") for path in (ROOT / folder).glob("*.md"))
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    return _CODE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def named_in_map(text: str) -> Iterator[str]:
    """Paths in the tree of the chapter "The map": the name before the gap, and files that its comment names."""
    (tree,) = re.findall(r"^## The map$.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    folders: list[str] = []
    for line in tree.splitlines():
        name, comment = re.split(r" {2,}", line.strip(), maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join(folders[:depth]) + name
        yield path
        if name.endswith("/"):
            folders[depth:] = [name]
            yield from (path + word for word in re.findall(r"(?<![\w/])\w+(?:\.(?:py|sh|yaml)|/(?!\w))", comment))


def test_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} does not exist"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert not anchor or anchor in anchors(target), f"{link}: {sorted(anchors(target))}"


def test_map_is_of_this_house() -> None:
    paths = list(named_in_map((ROOT / "README.md").read_text()))
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []
