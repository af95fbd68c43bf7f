"""Files of text, plain or compressed: path → decoded lines, in bounded memory. What all readers of corpora share.

What is done to the text, and nothing else: a byte order mark at the start of a file and the `\r` of CRLF line ends are
removed; tab, vertical tab, form feed, bare `\r` and U+0085 inside a paragraph become a space; other control characters
(NUL …) are removed; white space around a paragraph is removed. Lines are split at byte 0x0A only: Python's text mode
and `splitlines()` also split at `\r`, U+0085 and U+2028, which would shift columns and add paragraphs.
"""

from __future__ import annotations

import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from deltalm_jax.errors import UserError

# A longer line is no paragraph or sentence (CC100's longest are far below); it would be tokenised in one piece.
MAX_LINE_BYTES = 1 << 20

_BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACES = dict.fromkeys(map(ord, "\t\v\f\r\x85"), " ")
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0))}
_CLEAN = str.maketrans({**_CONTROLS, **_SPACES})
_HAS_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class CorpusError(UserError, ValueError):
    """A corpus file or folder that cannot be used; the message names the file, the place in it, and what to do."""


def clean(text: str) -> str:
    """A line without control characters (tabs and the like become spaces) and white space around it."""
    if _HAS_CONTROL.search(text):
        text = text.translate(_CLEAN)
    return text.strip()


def read_lines(path: Path, counts: Counter[str]) -> Iterator[str]:
    """Decoded lines, still with tabs and control characters; lines that are too long or not UTF-8 are only counted."""
    for raw in _split_lines(_read_bytes(path), counts):
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            counts["invalid_utf8"] += 1


def _split_lines(blocks: Iterator[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """Lines without their `\\n` or `\\r\\n`; holds at most one block and one line of the allowed length."""
    first = True
    skipping = False  # inside a line that is already over the limit
    pieces: list[bytes] = []
    length = 0
    for block in blocks:
        *complete, rest = block.split(b"\n")
        for line in complete:
            if pieces:
                line = b"".join(pieces) + line
                pieces, length = [], 0
            if first:
                line, first = line.removeprefix(_BYTE_ORDER_MARK), False
            if skipping or len(line) > MAX_LINE_BYTES:
                counts["long_line"] += 1
                skipping = False
            else:
                yield line.removesuffix(b"\r")
        if skipping:
            continue
        pieces.append(rest)
        length += len(rest)
        if length > MAX_LINE_BYTES:
            skipping, pieces, length = True, [], 0
    line = b"".join(pieces)
    if skipping:
        counts["long_line"] += 1
    elif line:
        yield (line.removeprefix(_BYTE_ORDER_MARK) if first else line).removesuffix(b"\r")


class _Decompressor(Protocol):
    """What `lzma.LZMADecompressor` and `_GzipDecompressor` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipDecompressor:
    """One gzip member through zlib, with lzma's interface."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max(max_length, 0))


def _read_bytes(path: Path) -> Iterator[bytes]:
    """The decompressed bytes in blocks of at most 1 MiB.

    The standard library's file objects are not used because `lzma.open` takes damage after the first of several
    concatenated streams for trailing garbage and just stops: a silently shorter corpus.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CorpusError(f"{path}: expected a readable corpus file, found: {error.strerror}.") from error
    with file:
        if path.suffix == ".xz":
            yield from _decompress(path, file, "xz")
        elif path.suffix == ".gz":
            yield from _decompress(path, file, "gz")
        else:
            while block := file.read(_BLOCK_BYTES):
                yield block


def _decompress(path: Path, file: BinaryIO, kind: str) -> Iterator[bytes]:
    given = 0  # decompressed bytes so far
    exhausted = False  # the file has been read to its end

    def damage(what: str) -> CorpusError:
        return CorpusError(
            f"{path}: the .{kind} data {what}, after {given:,} bytes of text (about byte {file.tell():,} of the "
            f"{path.stat().st_size:,} in the file). The download is incomplete or damaged; fetch the file again. "
            "Nothing after this place was read."
        )

    decompressor: _Decompressor | None = None
    data = b""
    streams = 0  # complete ones: files may be several streams (members) one after the other
    while True:
        if not data and (decompressor is None or decompressor.needs_input):
            data = file.read(_BLOCK_BYTES)
            exhausted = not data
        if decompressor is None:
            # Zero bytes may pad a stream.
            data = data.lstrip(b"\0") if streams else data
            if exhausted:
                break
            if not data:
                continue
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ) if kind == "xz" else _GzipDecompressor()
        try:
            block = decompressor.decompress(data, _BLOCK_BYTES)
        except (lzma.LZMAError, zlib.error) as error:
            raise damage(f"cannot be read ({error})") from error
        data = b""
        given += len(block)
        if block:
            yield block
        if decompressor.eof:
            streams += 1
            data = decompressor.unused_data
            decompressor = None
        elif exhausted and not block:
            raise damage("ends too early")
    if not streams:
        raise damage("is missing: the file is empty")
