"""OPUS's downloads: Moses archives and translation memories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.moses import read_moses
from deltalm_jax.data.readers.pairs import Pair
from deltalm_jax.data.readers.tmx import read_tmx
from deltalm_jax.paths import as_path


def read_opus(path: str | Path, counts: Counter[str] | None = None) -> Iterator[Pair]:
    """Pairs (English, other) of `de-en.txt.zip` (`read_moses`) or `de-en.tmx.gz` (`read_tmx`), which say the rest."""
    return (read_moses if as_path(path).name.endswith(".zip") else read_tmx)(path, counts)
