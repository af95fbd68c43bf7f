"""Moses archives, as OPUS publishes them: a zip with `Corpus.de-en.de` and `Corpus.de-en.en`, whose lines belong together.

Nothing is extracted: the two members are read side by side, as streams; README, LICENSE, `.ids` and `.scores` are not
looked at. So no member's name becomes a path. What a hostile archive could still do is refused before a member is opened.
"""

from __future__ import annotations

import contextlib
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from deltalm_jax.data.readers import compression
from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import decode_lines
from deltalm_jax.data.readers.names import is_english
from deltalm_jax.data.readers.pairs import Pair, pair_lines
from deltalm_jax.paths import as_path

MAX_MEMBERS = 1000

# No folders: what has a slash, a backslash or `..` in its name is not one of the two; nor what would speak to a terminal.
_MEMBER = re.compile(r"^(?P<stem>[^/\\\x00-\x1f\x7f-\x9f]+\.(?P<first>\w+)-(?P<second>\w+))\.(?P<side>\w+)$")
# A zip's end record: signature, …, bytes of the directory (offset 12), its place, length of the comment.
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
# Archives of over 4 GiB: a record of 56 bytes (bytes of the directory at 40) and a locator of 20 stand before it.
_ZIP64_END_RECORD = b"PK\x06\x06"
_END_RECORDS_BYTES = 56 + 20 + _END_RECORD_BYTES
_LONGEST_COMMENT = 0xFFFF
# Names in zips are at most 65,535 bytes long; those of a corpus are short.
_MAX_DIRECTORY_BYTES = 1 << 20
# OSError: a directory that points before the beginning of the file.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    NotImplementedError,
    ValueError,
    OverflowError,
    OSError,
)


def read_moses(path: str | Path, counts: Counter[str] | None = None) -> Iterator[Pair]:
    """Pairs (English, other) of a Moses archive.

    Args:
      path: a zip.
      counts: `counts[reason] += 1` for every line that is dropped, and its pair with it: "invalid_utf8", "long_line"; and
        for every pair with a side without text: "empty".

    Raises:
      CorpusError: no zip, or a damaged one; not exactly one pair of members, one of them English; members that are encrypted,
        links, packed by another method than deflate, or over `compression.MAX_RATIO` times larger than packed; over
        `MAX_MEMBERS` members; or unequal numbers of lines, of which it says both.
    """
    path = as_path(path)
    counts = Counter() if counts is None else counts
    try:
        file = path.open("rb")
    except OSError as error:
        raise CorpusError(f"{path}: expected a readable corpus file, found: {error.strerror}.") from error
    with file, _explained(path):
        _check_directory(path, file)
        with zipfile.ZipFile(file) as archive:
            english, other = _find_members(path, archive)
            with archive.open(english) as english_file, archive.open(other) as other_file:
                yield from pair_lines(
                    decode_lines(_blocks(path, english_file), counts),
                    decode_lines(_blocks(path, other_file), counts),
                    (f"{path}: {english.filename}", other.filename),
                    counts,
                )


def _find_members(path: Path, archive: zipfile.ZipFile) -> tuple[zipfile.ZipInfo, zipfile.ZipInfo]:
    """The English member and the other one.

    Raises:
      CorpusError: there are none, or several; or they are not what they should be.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise CorpusError(f"{path}: expected a Moses archive of a few members, found {len(members):,}.")
    pairs: dict[str, dict[str, zipfile.ZipInfo]] = {}
    for member in members:
        match = _MEMBER.match(member.filename)
        if match and match["side"] in (match["first"], match["second"]):
            sides = pairs.setdefault(match["stem"], {})
            if match["side"] in sides:
                raise CorpusError(f"{path}: expected one member of a name, found {member.filename!r} twice.")
            sides[match["side"]] = member
    complete = [sides for sides in pairs.values() if len(sides) == 2]
    if len(complete) != 1:
        names = ", ".join(repr(member.filename) for member in members[:8])
        raise CorpusError(
            f"{path}: expected two members with names like Corpus.de-en.de and Corpus.de-en.en, found "
            f"{'none' if not complete else len(complete)} such pair among {len(members):,} members "
            f"({names}{', …' if len(members) > 8 else ''})."
        )
    sides = complete[0]
    english = [code for code in sides if is_english(code)]
    if len(english) != 1:
        raise CorpusError(
            f"{path}: expected a language and English, found {' and '.join(sides)}. Translation span "
            "corruption takes pairs with English."
        )
    for member in sides.values():
        _check_member(path, member)
    return sides[english[0]], next(member for code, member in sides.items() if code != english[0])


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    what = f"{path}: {member.filename}"
    if member.flag_bits & 0x1:
        raise CorpusError(f"{what}: expected plain text, found an encrypted member; there is no password to give.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise CorpusError(f"{what}: expected text, found a symbolic link.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CorpusError(
            f"{what}: expected a member that is stored or deflated, found method {member.compress_type} "
            "(others cannot be unpacked in bounded memory). Pack it again with an ordinary zip."
        )
    compression.check_ratio(what, member.file_size, member.compress_size)


def _blocks(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """A member's text; Python's zipfile gives out no more than the directory says, and checks the CRC at the end."""
    given = 0
    while True:
        with _explained(path, given):
            block = file.read(compression.BLOCK_BYTES)
        if not block:
            return
        given += len(block)
        yield block


@contextlib.contextmanager
def _explained(path: Path, given: int = 0) -> Iterator[None]:
    """Turns whatever zipfile raises for damaged archives into an error that names the file."""
    try:
        yield
    except CorpusError:
        raise
    except _DAMAGE as error:
        raise CorpusError(
            f"{path}: the zip cannot be read ({error}){f', after {given:,} bytes of a member' if given else ''}. "
            "The download is incomplete or damaged; fetch the file again."
        ) from error


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Refuses a directory of millions of members, which zipfile would make objects of before it can be asked.

    Looks for the end record where zipfile does: at the very end, or before a comment; and for zip64's just before it.
    """
    end = file.seek(0, 2)
    file.seek(max(end - _END_RECORDS_BYTES - _LONGEST_COMMENT, 0))
    tail = file.read()
    file.seek(0)
    at = len(tail) - _END_RECORD_BYTES
    if at < 0 or not (tail[at:].startswith(_END_RECORD) and tail.endswith(b"\0\0")):
        at = tail.rfind(_END_RECORD)
    if at < 0 or len(tail) < at + _END_RECORD_BYTES:
        raise CorpusError(
            f"{path}: expected a zip archive, found no directory at its end. The download is incomplete, or "
            "this is something else (an error page?); fetch the file again."
        )
    (size,) = struct.unpack_from("<I", tail, at + 12)
    zip64 = at - _END_RECORDS_BYTES + _END_RECORD_BYTES
    if zip64 >= 0 and tail.startswith(_ZIP64_END_RECORD, zip64):
        (size,) = struct.unpack_from("<Q", tail, zip64 + 40)
    if size > _MAX_DIRECTORY_BYTES:
        raise CorpusError(
            f"{path}: expected a Moses archive of a few members, found a directory of {size:,} bytes, for thousands."
        )
