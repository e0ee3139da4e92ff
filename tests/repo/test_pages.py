"""Laws of the pages: what they point at is there, and change fragments are named as they are gathered."""

import re

import pytest

from tests.repo.tree import ROOT, files

PAGES = [path for path in files() if path.suffix == ".md"]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
ROOM = re.compile(r"`((?:app|agents|tables|config|docs|scripts|tests)/[\w./*<>-]*)`")
FRAGMENT = re.compile(r"[\w-]+\.(?:feature|fix|breaking|removed)(?:\.\d+)?\.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_map_names_files_that_exist():
    named = ROOM.findall((ROOT / "docs/map.md").read_text(encoding="utf-8"))
    assert named
    patterns = {name: re.sub(r"<\w+>", "*", name).rstrip("/") for name in named}
    absent = [name for name, at in patterns.items() if not [*ROOT.glob(at), *ROOT.glob(f"{at}.py")]]
    assert absent == []


def test_change_fragments_are_named_by_issue_and_kind():
    names = {path.name for path in (ROOT / "changes").glob("*.md")} - {"README.md"}
    assert [name for name in names if not FRAGMENT.fullmatch(name)] == []
