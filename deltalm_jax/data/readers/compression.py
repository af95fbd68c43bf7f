"""Decompression of corpus files in bounded memory: .xz and .gz, as many streams as there are, damage told from the end.

What a compressed file may ask for is limited, for files come from anywhere (a kilobyte can hold a gigabyte, and an .xz
header can ask for four gigabytes of memory before the first byte):

- after its first 16 MiB of text, a file that is more than `MAX_RATIO` times smaller than its text is refused. Text comes to 3
  to 10 times, the most repetitive text to some 50;
- an .xz file may need `XZ_MEMORY_BYTES`; `xz -9` needs 65 MiB;
- one stream after the other that holds nothing is refused.

The standard library's file objects are not used because `lzma.open` takes damage after the first of several
concatenated streams for trailing garbage and just stops: a silently shorter corpus.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from deltalm_jax.data.readers.errors import CorpusError

BLOCK_BYTES = 1 << 20
MAX_RATIO = 250
FREE_BYTES = 16 << 20
XZ_MEMORY_BYTES = 256 << 20

_MAX_EMPTY_STREAMS = 1000


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


def check_ratio(what: object, given: int, compressed: int) -> None:
    """Refuses data that expand beyond all measure.

    Args:
      what: the file, for the message.
      given: bytes of text so far.
      compressed: bytes that they came from, or more.

    Raises:
      CorpusError: `given` is over 16 MiB and over `MAX_RATIO` times `compressed`.
    """
    if given > FREE_BYTES and given > MAX_RATIO * compressed:
        raise CorpusError(
            f"{what}: expected text, which compresses 3 to 10 times; found {given:,} bytes (and more to come) in the first "
            f"{compressed:,}, over {MAX_RATIO} times as many. This looks like a decompression bomb, or like a file of "
            "nothing but repetition. Leave it out; or, if you trust it, unpack it yourself."
        )


def decompress(path: Path, file: BinaryIO, kind: str) -> Iterator[bytes]:
    """The text of a compressed file in blocks of at most 1 MiB.

    Args:
      path: of the file, for messages.
      file: opened.
      kind: "xz" or "gz".

    Raises:
      CorpusError: damaged, truncated, or beyond the limits above.
    """
    given = 0  # decompressed bytes so far
    taken = 0  # compressed bytes read so far
    exhausted = False  # the file has been read to its end

    def damage(what: str) -> CorpusError:
        return CorpusError(
            f"{path}: the .{kind} data {what}, after {given:,} bytes of text (about byte {taken:,} of the "
            f"{path.stat().st_size:,} in the file). The download is incomplete or damaged; fetch the file again. "
            "Nothing after this place was read."
        )

    decompressor: _Decompressor | None = None
    data = b""
    streams = 0  # complete ones: files may be several streams (members) one after the other
    empty = 0  # streams without text since the last text
    while True:
        if not data and (decompressor is None or decompressor.needs_input):
            data = file.read(BLOCK_BYTES)
            taken += len(data)
            exhausted = not data
        if decompressor is None:
            # Zero bytes may pad a stream.
            data = data.lstrip(b"\0") if streams else data
            if exhausted:
                break
            if not data:
                continue
            decompressor = (
                lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES) if kind == "xz" else _GzipDecompressor()
            )
        try:
            block = decompressor.decompress(data, BLOCK_BYTES)
        except (lzma.LZMAError, zlib.error) as error:
            if "emory" in str(error):
                raise CorpusError(
                    f"{path}: expected .xz data that unpack in {XZ_MEMORY_BYTES >> 20} MiB of memory (xz -9 needs 65), found "
                    "data that ask for more. Compress the file again, with xz -9 or lower."
                ) from error
            raise damage(f"cannot be read ({error})") from error
        data = b""
        given += len(block)
        check_ratio(path, given, taken)
        if block:
            empty = 0
            yield block
        if decompressor.eof:
            streams += 1
            empty += 1
            if empty > _MAX_EMPTY_STREAMS:
                raise damage(f"are over {_MAX_EMPTY_STREAMS:,} empty streams in a row")
            data = decompressor.unused_data
            decompressor = None
        elif exhausted and not block:
            raise damage("ends too early")
    if not streams:
        raise damage("is missing: the file is empty")
