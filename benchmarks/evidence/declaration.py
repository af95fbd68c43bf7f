"""The Universal Declaration of Human Rights: a preamble and 30 articles in hundreds of languages, one HTML file each."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from benchmarks.evidence.cleaning import clean
from benchmarks.evidence.documents import TRAIN, VALIDATION, Document, Pair, SourceError
from benchmarks.evidence.sources import ENGLISH
from tasks.languages import Codes, load_languages

# Articles from this one on are held out for validation.
FIRST_HELD_OUT = 21

# Where a language has several spellings or scripts, the one that its corpora are written in: file → language.
_PREFERRED = {
    "als": "sq",
    "azj_latn": "az",
    "bos_latn": "bs",
    "cmn_hans": "zh-Hans",
    "deu_1996": "de",
    "ell_monotonic": "el",
    "hau_NG": "ha",
    "jav": "jv",
    "khk": "mn",
    "mly_latn": "ms",
    "por_BR": "pt-br",
    "por_PT": "pt",
    "ron_2006": "ro",
    "srp_cyrl": "sr",
    "tuk_latn": "tk",
    "uig_arab": "ug",
    "uzn_latn": "uz",
}
_FILE = re.compile(r"declaration/([^/]+)\.html$")
_LANG = re.compile(r'<html[^>]*\blang="([^"]+)"')


def read_declaration(path: Path, languages: Sequence[str]) -> Iterator[Document]:
    """A document for each article in each language, English too.

    Where an article has as many paragraphs as in English they are paired one by one, else all of it is one pair.

    Raises:
      SourceError: no English declaration is in the archive.
    """
    pages = _pages(path)
    if ENGLISH not in pages:
        raise SourceError(f'{path}: expected declaration/eng.html with lang="en" in it, found no English declaration.')
    english = _sections(pages[ENGLISH])
    for language in sorted({ENGLISH, *languages} & set(pages)):
        for number, paragraphs in sorted(_sections(pages[language]).items()):
            split = VALIDATION if number >= FIRST_HELD_OUT else TRAIN
            pairs = () if language == ENGLISH else _pairs(paragraphs, english.get(number, []))
            text = tuple(Pair(paragraph, "") for paragraph in paragraphs)
            yield Document(language, f"declaration/{number:02d}", split, text, pairs)


def _pages(path: Path) -> dict[str, str]:
    """Language → page: the preferred one, else the first whose code is a plain one of the table of languages."""
    table = load_languages()
    codes = Codes(table)
    preferred: dict[str, str] = {}
    others: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            match = _FILE.search(member.name)
            file = archive.extractfile(member) if match else None
            if match is None or file is None:
                continue
            page = file.read().decode()
            tag = _LANG.search(page)
            if match[1] in _PREFERRED:
                preferred[_PREFERRED[match[1]]] = page
            elif tag and codes.find(tag[1]) in table and (tag[1].isalpha() or tag[1] in table):
                others.setdefault(codes.find(tag[1]), page)
    return {**others, **preferred}


def _pairs(paragraphs: list[str], english: list[str]) -> tuple[Pair, ...]:
    if not paragraphs or not english:
        return ()
    if len(paragraphs) == len(english):
        return tuple(Pair(*both) for both in zip(paragraphs, english, strict=True))
    return (Pair(" ".join(paragraphs), " ".join(english)),)


def _sections(page: str) -> dict[int, list[str]]:
    parser = _Page()
    parser.feed(page)
    parser.close()
    return {
        number: cleaned for number, raw in parser.sections.items() if (cleaned := [p for p in map(clean, raw) if p])
    }


class _Page(HTMLParser):
    """Collects the paragraphs of the preamble (0) and of each numbered article."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[int, list[str]] = {}
        self._section: int | None = None
        self._in_paragraph = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        number = dict(attrs).get("data-number") or ""
        if tag == "header":
            self._section = 0
        elif tag == "article":
            self._section = int(number) if number.isdecimal() else None
        elif tag == "p" and self._section is not None:
            self.sections.setdefault(self._section, []).append("")
            self._in_paragraph = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("header", "article"):
            self._section = None
        if tag in ("p", "header", "article"):
            self._in_paragraph = False

    def handle_data(self, data: str) -> None:
        if self._in_paragraph and self._section is not None:
            self.sections[self._section][-1] += data
