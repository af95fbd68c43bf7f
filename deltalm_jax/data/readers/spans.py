"""Pieces of large files: which files can be read from the middle, and where one piece ends and the next begins.

A span says roughly which bytes of a file's text (decompressed) a piece has; it really begins and ends where a document or
a line does. Both ends are found by the same rule, "the first boundary from there on", so that a piece ends just where the
next one begins: whatever the spans, every document is in exactly one piece, and whole.

Plain text can be read from anywhere. An .xz file can where it was written in several blocks or streams (`xz -T0
--block-size=64MiB`): they are compressed separately, and an index at the end of the file says where they are. In a
single block, and in .gz, every byte depends on all before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

import xz

from deltalm_jax.data.readers.compression import BLOCK_BYTES, XZ_MEMORY_BYTES, check_ratio
from deltalm_jax.data.readers.errors import CorpusError

_BEYOND_BYTES = 1 << 14

# Where a piece may begin: after this match. The line feed is the end of the line before.
AFTER_LINE = re.compile(rb"\n")
AFTER_BLANK_LINE = re.compile(rb"\n\r?\n")
# Bytes of a match that may lie in the block before.
_OVERLAP = 2


@dataclasses.dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of a file's text; `end` None for its end."""

    start: int
    end: int | None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(f"a span must not be empty, found bytes {self.start} to {self.end}")


def text_size(path: Path) -> tuple[int, int] | None:
    """Bytes of text, and the most pieces it is worth dividing into; None if the file cannot be read from the middle.

    Raises:
      CorpusError: an .xz file without a sound index, or beyond the limits of `compression`.
    """
    if path.suffix == ".gz":
        return None
    if path.suffix != ".xz":
        size = path.stat().st_size
        return size, size
    try:
        with path.open("rb") as file:
            # What its first block asks for, the others do.
            lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES).decompress(file.read(BLOCK_BYTES), 1)
            with xz.XZFile(file, "r") as text:
                check_ratio(path, len(text), path.stat().st_size)
                # Several pieces in one block would each decompress what lies before.
                return len(text), len(text.block_boundaries)
    except lzma.LZMAError as error:
        raise CorpusError(f"{path}: the .xz data cannot be read ({error}). Fetch the file again.") from error
    except (xz.XZError, EOFError, OSError) as error:
        raise CorpusError(
            f"{path}: the .xz data has no sound index at its end ({error}). The download is incomplete or damaged; fetch the "
            "file again."
        ) from error


def read_span(path: Path, span: Span, boundary: re.Pattern[bytes]) -> Iterator[bytes]:
    """The text of a span, in blocks of at most 1 MiB and a little: from the first boundary at its start to that at its end.

    Args:
      path: plain or .xz.
      span: of its text.
      boundary: `AFTER_LINE` or `AFTER_BLANK_LINE`.

    Raises:
      CorpusError: damage.
    """
    # A line that begins right at the start does so after the line feed before it.
    position = max(span.start - 1, 0)
    yield from _cut(_blocks_from(path, position, span.end), position, span, boundary)


def _blocks_from(path: Path, position: int, end: int | None) -> Iterator[bytes]:
    with contextlib.ExitStack() as stack:
        stored = stack.enter_context(path.open("rb"))
        file = stack.enter_context(xz.XZFile(stored, "r")) if path.suffix == ".xz" else stored
        try:
            file.seek(position)
            while True:
                # Beyond the end, only as far as the next boundary, about.
                left = BLOCK_BYTES if end is None else max(end - file.tell(), _BEYOND_BYTES)
                block = file.read(min(left, BLOCK_BYTES))
                if not block:
                    return
                yield block
        except (xz.XZError, lzma.LZMAError, EOFError) as error:
            raise CorpusError(
                f"{path}: the .xz data is damaged between bytes {position:,} and {file.tell():,} of text ({error}). Fetch "
                "the file again."
            ) from error


def _cut(blocks: Iterator[bytes], position: int, span: Span, boundary: re.Pattern[bytes]) -> Iterator[bytes]:
    """Cuts a stream of bytes, of which the first is the text's byte `position`, to a span.

    The boundary of a place p is the first match that begins at p - 1 or after. Where none begins inside the span, its
    start and its end are the same boundary, and it is empty.
    """
    begin = 0 if span.start == 0 else None
    held = b""  # the text from `position` on, as far as it was read
    for block in blocks:
        held += block
        limit = position + len(held)
        if begin is None:
            if match := boundary.search(held, max(span.start - 1 - position, 0)):
                begin = position + match.end()
            elif span.end is not None and limit - _OVERLAP >= span.end - 1:
                return
        if begin is not None and span.end is not None and limit >= span.end:
            match = boundary.search(held, max(span.end - 1 - position, 0))
            if match:
                yield held[max(begin - position, 0) : match.end()]
                return
        # What stands before the last bytes is in no match that is still to come.
        decided = max(len(held) - _OVERLAP, 0)
        if begin is not None and begin - position < decided:
            yield held[max(begin - position, 0) : decided]
            begin = position + decided
        held, position = held[decided:], position + decided
    if begin is not None and begin - position < len(held):
        yield held[max(begin - position, 0) :]
