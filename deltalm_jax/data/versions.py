"""Which software prepares data: recorded in the manifest, and the same all through one preparation."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

import deltalm_jax

# What has a say in the bytes of prepared data, or in where they come from.
_LIBRARIES = ("apache-beam", "array_record", "datasketch", "numpy", "regex", "sentencepiece", "xxhash")


def versions() -> dict[str, str]:
    """Versions of this project, Python and the libraries behind prepared data."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"deltalm_jax": deltalm_jax.__version__, "python": platform.python_version(), **libraries}


@functools.cache
def code_digest() -> str:
    """SHA-256 of the source files that prepare data, so that work is not mixed with that of another state of the code.

    A version's name says less: it stays the same while somebody changes a reader or a filter of theirs.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*(root / "data").rglob("*.py"), root / "objectives" / "hashing.py"]):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
