"""The pages: every link leads somewhere, and the site has every page, once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.documentation.links import anchors, broken, markdown_of, targets
from tests.documentation.site import problems
from tests.support.runs import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")])


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_the_site_has_every_page_once() -> None:
    """index.rst is the navigation, and has the first page in it."""
    index = (ROOT / "docs" / "index.rst").read_text()
    listed = re.findall(r"^ {3}(?:\S.*<)?(\w+)>?$|^\.\. include:: (\w+)\.md$", index, re.MULTILINE)
    listed = [entry or included for entry, included in listed if entry != "self"]
    pages = [page.stem for page in [*PAGES, *(ROOT / "docs").glob("*.rst")] if page.name != "index.rst"]
    assert sorted(listed) == sorted(pages)


def test_a_page_for_the_site_links_to_nothing_outside_of_it() -> None:
    outside = [f"{page.name}: {target}" for page in PAGES for target in targets(markdown_of(page)) if ".." in target]
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
    cells = [
        {"cell_type": "markdown", "source": ["[i](page.md)\n", "[j](gone.md)"]},
        {"cell_type": "code", "source": "[k](no.md)"},
    ]
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert [reason.split(": ")[1] for reason in broken(notebook)] == ["gone.md"]


def test_what_is_wrong_with_a_site(tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "index.html").write_text('<a href="gone.html">not ours</a><p id="there">')
    (tmp_path / "index.html").write_text(
        '<link href="style.css"><script src="https://example.org/x.js"></script><img src="data:image/png;base64,AA">'
        '<a href="https://example.org">fine</a><a href="api/index.html#there">fine</a><a href="#here" id="here">fine</a>'
        '<a href="api/index.html#elsewhere"></a><a href="gone.html"></a>'
    )
    assert problems(tmp_path) == [
        "index.html: style.css: there is no such file",
        "index.html: loads https://example.org/x.js",
        "index.html: api/index.html#elsewhere: there is no such place",
        "index.html: gone.html: there is no such file",
    ]
