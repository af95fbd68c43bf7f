"""Large compressed files: read in bounded memory, from the start or from the middle."""

from __future__ import annotations

import lzma
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import xz

from tests.data.test_restart import ROOT

pytestmark = pytest.mark.slow

READ = """
import resource, sys
from collections import Counter
from pathlib import Path
from deltalm_jax.data.readers import read_cc100
from deltalm_jax.data.readers.spans import Span, text_size
path, start, end = Path(sys.argv[1]), *map(int, sys.argv[2:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = size = 0
span = Span(start, end or None) if start or end else None
for document in read_cc100(path, Counter(), span):
    count += 1
    size += sum(len(paragraph.encode()) + 1 for paragraph in document) + 1
print(count, size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
MB = 200


def read(path: Path, start: int = 0, end: int = 0) -> tuple[int, int, int]:
    """Documents, bytes of text, and MiB of memory that reading took, in a process of its own."""
    command = [sys.executable, "-c", READ, str(path), str(start), str(end)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    documents, size, memory = map(int, done.stdout.split())
    return documents, size, memory


@pytest.fixture(scope="module")
def block() -> bytes:
    """Ten MB of text."""
    generator = random.Random(0)
    words = [generator.randbytes(generator.randint(1, 5)).hex() for _ in range(20_000)]
    text, size = [], 0
    while size < 10_000_000:
        document = "\n".join(" ".join(generator.choices(words, k=20)) for _ in range(5)).encode() + b"\n\n"
        text.append(document)
        size += len(document)
    return b"".join(text)


@pytest.mark.parametrize("kind", ["one block.txt.xz", "blocks.txt.xz", "one.txt.gz"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path, block: bytes, kind: str) -> None:
    path, copies = tmp_path / kind, MB // 10
    if kind == "blocks.txt.xz":
        with xz.open(path, "wb", preset=0) as file:
            for _ in range(copies):
                file.write(block)
                file.change_block()
    else:
        compressor = zlib.compressobj(1, wbits=31) if kind.endswith("gz") else lzma.LZMACompressor(preset=0)
        with path.open("wb") as plain:
            for _ in range(copies):
                plain.write(compressor.compress(block))
            plain.write(compressor.flush())
    each = block.count(b"\n\n")
    documents, size, memory = read(path)
    assert (documents, size) == (each * copies, len(block) * copies)
    assert memory < 32
    if kind == "blocks.txt.xz":
        # The last tenth, without the nine before.
        began = time.monotonic()
        documents, size, memory = read(path, len(block) * (copies - copies // 10) - 1)
        assert (documents, size) == (each * (copies // 10), len(block) * (copies // 10))
        assert memory < 32
        print(f"last tenth of {MB} MB of text: {time.monotonic() - began:.1f} s")
