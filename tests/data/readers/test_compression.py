"""Compressed files that ask for more than a reader may give: how much is unpacked, and in how much memory."""

from __future__ import annotations

import gzip
import lzma
import random
import time
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import pytest

from deltalm_jax.data.readers import CorpusError, compression, read_cc100
from tests.data.readers.conftest import Write

GIGABYTE = 1 << 30


def gzip_of_zeros(size: int) -> bytes:
    """A gzip member of `size` zero bytes, made a piece at a time."""
    packer, piece = zlib.compressobj(9, wbits=31), b"\0" * (1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


def xz_of_zeros(size: int) -> bytes:
    packer, piece = lzma.LZMACompressor(preset=1), b"\0" * (1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.parametrize(("name", "make"), [("de.txt.gz", gzip_of_zeros), ("de.txt.xz", xz_of_zeros)])
def test_a_bomb_stops_early_and_in_little_memory(tmp_path: Path, name: str, make) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / name
    # A thousandth of that in .gz, and less in .xz.
    path.write_bytes(make(GIGABYTE >> 2))
    sizes: list[int] = []
    tracemalloc.start()
    with path.open("rb") as file:
        blocks = compression.decompress(path, file, path.suffix[1:])
        with pytest.raises(CorpusError, match=rf"{name}: .* decompression bomb") as error:
            sizes.extend(len(block) for block in blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) <= max(compression.FREE_BYTES, compression.MAX_RATIO * path.stat().st_size)
    assert sum(sizes) < GIGABYTE >> 2
    assert peak < 16 << 20
    assert f"over {compression.MAX_RATIO} times" in str(error.value)


def test_text_that_repeats_itself_is_no_bomb(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most repetitive text there is: one document over and over, in files beyond the free size."""
    monkeypatch.setattr(compression, "FREE_BYTES", 1 << 20)
    document = "".join(f"line {i} of a page that was published again and again\n" for i in range(4)) + "\n"
    generator = random.Random(0)
    pages = [document.replace("published", f"published {generator.randrange(10**9)} times") for _ in range(10_000)]
    text = "".join(pages).encode()
    assert len(text) > compression.FREE_BYTES
    for name in ("de.txt.xz", "de.txt.gz"):
        path = write(name, text) if name.endswith("gz") else write(name, b"")
        if name.endswith("xz"):
            path.write_bytes(lzma.compress(text, preset=0))
        assert 15 < len(text) / path.stat().st_size < compression.MAX_RATIO
        assert sum(1 for _ in read_cc100(path)) == 10_000


def test_a_bomb_in_the_last_of_many_streams(tmp_path: Path) -> None:
    path = tmp_path / "de.txt.gz"
    path.write_bytes(gzip.compress(b"eins\n\n") * 3 + gzip_of_zeros(64 << 20))
    found = []
    with pytest.raises(CorpusError, match="decompression bomb"):
        found.extend(read_cc100(path))
    assert [*found[:3], found[3:]] == [["eins"], ["eins"], ["eins"], []]


def test_an_xz_file_that_asks_for_gigabytes_of_memory(tmp_path: Path) -> None:
    """The dictionary's size stands in the header; it is made before the first byte of text."""
    path = tmp_path / "de.txt.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
    data = bytearray(lzma.compress(b"eins\n", filters=filters))
    # Block header at 12: size, flags, filter id 0x21, size of properties 1, dictionary size, padding, CRC-32.
    assert data[14:16] == b"\x21\x01"
    data[16] = 39  # 3 GiB
    size = 4 * (data[12] + 1)
    data[12 + size - 4 : 12 + size] = zlib.crc32(data[12 : 12 + size - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"de\.txt\.xz: expected \.xz data that unpack in 256 MiB .*more"):
        list(read_cc100(path))
    path.write_bytes(lzma.compress(b"eins\n", preset=9))
    assert list(read_cc100(path)) == [["eins"]]


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_streams_of_nothing_end(tmp_path: Path, suffix: str, compress) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"de.txt{suffix}"
    path.write_bytes(compress(b"") * 1000 + compress(b"a\n"))
    assert list(read_cc100(path)) == [["a"]]
    path.write_bytes(compress(b"") * 60_000 + compress(b"a\n"))
    begin = time.monotonic()
    with pytest.raises(CorpusError, match="over 1,000 empty streams"):
        list(read_cc100(path))
    assert time.monotonic() - begin < 5


def test_lines_of_one_character(write: Write) -> None:
    """The smallest lines there are: 400,000 of them, in a document and each in its own."""
    counts: Counter[str] = Counter()
    tracemalloc.start()
    documents = sum(1 for _ in read_cc100(write("a.txt", b"x\n\n" * 200_000), counts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents == 200_000
    assert peak < 64 << 20
    (document,) = read_cc100(write("b.txt", b"x\n" * 200_000), counts)
    assert len(document) == 200_000
    assert not counts
