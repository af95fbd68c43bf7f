"""The pages: every link leads somewhere, and the site has every page, once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documentation.links import anchors, broken, targets
from tests.support.runs import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_the_site_has_every_page_once() -> None:
    listed = re.findall(r"^ *- .*?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES]


def test_a_page_for_the_site_links_to_nothing_outside_of_it() -> None:
    outside = [f"{page.name}: {target}" for page in PAGES for target in targets(page.read_text()) if ".." in target]
    assert outside == [], "the site holds docs/ only: name the file as code"


def test_what_a_link_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two: `three_four` (5 %)\n\n## Twice\n\n## Twice\n\n"
        "[a](#one-two-three_four-5-) [b](gone.md) ![c](page.md#none) [d](https://example.org/x.md) `[e](code.md)`\n"
        "[f](#twice)\n\n```md\n[g](fenced.md)\n# no heading\n```\n\n    [h](indented.md)\n"
    )
    assert anchors(page.read_text()) == {"one-two-three_four-5-"}
    assert [reason.split(": ")[1] for reason in broken(page)] == ["gone.md", "page.md#none", "#twice"]
