"""The pages: short enough at the front, and nothing in them points to what is not there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for folder in ("", "server", "router", "reasoning_net", "deploy") for path in (ROOT / folder).glob("*.md"))
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_MAPPED = re.compile(r" *[\w-]+[./][\w./ -]*? {2,}\S")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    return _CODE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def named_in_map(page: Path) -> Iterator[Path]:
    """Paths in a page's annotated tree: the names before the gap, and files and folders that the comment after it names."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    tree = next(block for block in blocks if all(map(_MAPPED.match, block.splitlines())))
    folders: list[str] = []
    for line in tree.splitlines():
        names, comment = re.split(r" {2,}", line.strip(), maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        parent = page.parent.joinpath(*folders[:depth])
        yield from (parent / name for name in names.split())
        if names.endswith("/"):
            folders[depth:] = [names]
            yield from (parent / names / word for word in re.findall(r"(?<![\w/-])[\w-]+(?:\.(?:py|sh|yaml)|/(?!\w))", comment))


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


@pytest.mark.parametrize(("folder", "least"), [(".", 30), ("router", 8), ("reasoning_net", 9), ("deploy", 4)])
def test_maps_are_of_this_house(folder: str, least: int) -> None:
    paths = list(named_in_map(ROOT / folder / "README.md"))
    assert len(paths) >= least
    assert [str(path.relative_to(ROOT)) for path in paths if not path.exists()] == []
