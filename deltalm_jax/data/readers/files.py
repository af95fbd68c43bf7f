"""Files of text, plain or compressed: path → decoded lines, in bounded memory. What all readers of corpora share.

What is done to the text, and nothing else: a byte order mark at the start of a file and the `\r` of CRLF line ends are
removed; tab, vertical tab, form feed, bare `\r` and U+0085 inside a paragraph become a space; other control characters
(NUL …) are removed; white space around a paragraph is removed. Lines that are not UTF-8 are dropped. Unicode is not
normalised: that is the vocabulary's work. Lines are split at byte 0x0A only: Python's text mode and `splitlines()` also
split at `\r`, U+0085 and U+2028, which would shift columns and add paragraphs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltalm_jax.data.readers import compression
from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.spans import AFTER_LINE, Span, read_span

# A longer line is no paragraph or sentence (CC100's longest are far below); it would be tokenised in one piece.
MAX_LINE_BYTES = 1 << 20
# A file without blank lines is one document of gigabytes; it is given out in parts of this size.
MAX_DOCUMENT_BYTES = 4 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACES = dict.fromkeys(map(ord, "\t\v\f\r\x85"), " ")
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0))}
_CLEAN = str.maketrans({**_CONTROLS, **_SPACES})
_HAS_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """A line without control characters (tabs and the like become spaces) and white space around it."""
    if _HAS_CONTROL.search(text):
        text = text.translate(_CLEAN)
    return text.strip()


def read_lines(
    path: Path,
    counts: Counter[str],
    max_bytes: int = MAX_LINE_BYTES,
    span: Span | None = None,
    boundary: re.Pattern[bytes] = AFTER_LINE,
) -> Iterator[str]:
    """Decoded lines, still with tabs and control characters; lines that are too long or not UTF-8 are only counted.

    Args:
      path: `.xz`, `.gz` or plain.
      counts: grows by "long_line" and "invalid_utf8".
      max_bytes: the longest line.
      span: only this piece of the file (not of a `.gz`); see `spans`.
      boundary: where pieces begin and end.

    Raises:
      CorpusError: the file is missing, truncated, corrupt or not of the format its name says.
    """
    blocks = read_bytes(path) if span is None else read_span(path, span, boundary)
    lines = decode_lines(blocks, counts, max_bytes, of_whole_file=span is None or span.start == 0)
    return (line for line in lines if line is not None)


def decode_lines(
    blocks: Iterable[bytes], counts: Counter[str], max_bytes: int = MAX_LINE_BYTES, of_whole_file: bool = True
) -> Iterator[str | None]:
    """As `read_lines`, of blocks of bytes, with None in the place of each line that is left out.

    `of_whole_file`: the blocks begin where a file does, where a byte order mark may stand.
    """
    for raw in _split_lines(blocks, max_bytes, of_whole_file):
        if raw is None:
            counts["long_line"] += 1
            yield None
            continue
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            counts["invalid_utf8"] += 1
            yield None


def read_bytes(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file in blocks of at most 1 MiB.

    Raises:
      CorpusError: as `read_lines`.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CorpusError(f"{path}: expected a readable corpus file, found: {error.strerror}.") from error
    with file:
        if path.suffix in (".xz", ".gz"):
            yield from compression.decompress(path, file, path.suffix[1:])
        else:
            while block := file.read(compression.BLOCK_BYTES):
                yield block


def to_paragraphs(lines: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """Cleaned lines; what cannot be a paragraph is left out and counted.

    Args:
      lines: of text that did not come as bytes (JSON, TFRecord), where anything may stand.
      counts: grows by "empty" (nothing but control characters), "lone_surrogate" (half a character, which JSON can hold and
        UTF-8 cannot) and "long_line" (over `MAX_LINE_BYTES`). Lines of white space alone are not counted.
    """
    for line in lines:
        if not line.strip():
            continue
        paragraph = clean(line)
        if not paragraph:
            counts["empty"] += 1
        elif _SURROGATE.search(paragraph):
            counts["lone_surrogate"] += 1
        elif len(paragraph.encode()) > MAX_LINE_BYTES:
            counts["long_line"] += 1
        else:
            yield paragraph


def in_parts(document: Iterable[str], counts: Counter[str]) -> Iterator[list[str]]:
    """A document, non-empty, in one piece; or in several of at most `MAX_DOCUMENT_BYTES`, counted "long_document"."""
    part: list[str] = []
    size = 0
    for paragraph in document:
        length = len(paragraph.encode())
        if part and size + length > MAX_DOCUMENT_BYTES:
            counts["long_document"] += 1
            yield part
            part, size = [], 0
        part.append(paragraph)
        size += length
    if part:
        yield part


def _split_lines(blocks: Iterable[bytes], max_bytes: int, first: bool = True) -> Iterator[bytes | None]:
    """Lines without their `\\n` or `\\r\\n`, None for one that is too long; holds at most one block and one such line."""
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
            if skipping or len(line) > max_bytes:
                yield None
                skipping = False
            else:
                yield line.removesuffix(b"\r")
        if skipping:
            continue
        pieces.append(rest)
        length += len(rest)
        if length > max_bytes:
            skipping, pieces, length = True, [], 0
    line = b"".join(pieces)
    if skipping:
        yield None
    elif line:
        yield (line.removeprefix(_BYTE_ORDER_MARK) if first else line).removesuffix(b"\r")
