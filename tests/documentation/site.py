"""Checks a built site: every link to a page of its own leads somewhere, and nothing is loaded from elsewhere.

python -m tests.documentation.site build/docs
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself.
LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
# Made by pdoc from docstrings, and not checked themselves; links into them are.
OTHERS_WORK = "api"


class Page(HTMLParser):
    """The ids of a page, and its links: (address, whether a browser loads it by itself)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, bool]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what the tag has."""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append((value, (tag, name) in LOADED))


def problems(site: Path) -> list[str]:
    """What is wrong with a site, a line each."""
    pages: dict[Path, Page] = {}
    found = []
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site)
        if name.parts[0] == OTHERS_WORK:
            continue
        for link, loaded in pages.setdefault(path, Page(path)).links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                if loaded and url.scheme != "data":
                    found.append(f"{name}: loads {link}")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file():
                found.append(f"{name}: {link}: there is no such file")
            elif url.fragment and target.suffix == ".html":
                if target not in pages:
                    pages[target] = Page(target)
                if unquote(url.fragment) not in pages[target].ids:
                    found.append(f"{name}: {link}: there is no such place")
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]).resolve())
    sys.exit("\n".join(lines) if lines else 0)
