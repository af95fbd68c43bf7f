"""What the tests of readers share."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes bytes to a file, compressed as its name says."""

    def function(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".xz"):
            data = lzma.compress(data)
        elif name.endswith(".gz"):
            data = gzip.compress(data)
        path.write_bytes(data)
        return path

    return function
