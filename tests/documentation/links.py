"""Links and anchors of Markdown files, as far as they stay inside the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|^(?: {4}|\t)[^\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?[^()\s]*)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)


def targets(markdown: str) -> Iterator[str]:
    """What links and images point to, but for other sites; code is no link."""
    for found in _LINK.finditer(_CODE.sub("", _FENCE.sub("", markdown))):
        if not re.match(r"[a-z][a-z0-9+.-]*:", found[1]):
            yield found[1]


def markdown_of(page: Path) -> str:
    """The text of a page; of a notebook, that of its cells of Markdown."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, on which the site and the usual hosts of repositories agree.

    Lower case; what is neither letter, digit, space, hyphen nor underscore goes; spaces become hyphens. A heading that comes
    twice has none here: the second one's number is nobody's business.
    """
    found: list[str] = []
    for heading in _HEADING.finditer(_FENCE.sub("", markdown)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").replace("*", "")
        found.append(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return {anchor for anchor in found if found.count(anchor) == 1}


def broken(page: Path) -> list[str]:
    """Each link of a page whose file or anchor is not there, with the reason."""
    reasons = []
    for target in targets(markdown_of(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists():
            reasons.append(f"{page.name}: {target}: there is no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
            reasons.append(f"{page.name}: {target}: {file.name} has no such heading, or several")
    return reasons
