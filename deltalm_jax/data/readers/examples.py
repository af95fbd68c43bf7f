"""Examples of one's own to fine-tune on: a source and its target in each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.pairs import read_columns
from deltalm_jax.data.readers.spans import Span
from deltalm_jax.paths import as_path


def read_examples(
    path: str | Path, counts: Counter[str] | None = None, span: Span | None = None
) -> Iterator[tuple[str, str]]:
    """(source, target) of a file with these two columns, separated by a tab.

    Args:
      path: plain, `.xz` or `.gz`. A third column, if there is one, holds a number, and is not looked at.
      counts: of dropped rows, by reason: as `pairs.read_columns`.
      span: only the rows of this piece of the file.

    Raises:
      CorpusError: the file is missing, truncated or corrupt.
    """
    yield from read_columns(as_path(path), True, Counter() if counts is None else counts, span)
