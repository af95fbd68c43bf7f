"""Pairs from two columns, or from two files line by line: what the readers of parallel text share."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltalm_jax.data.filters.counting import count_before, count_dropped
from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import clean, read_lines
from deltalm_jax.data.readers.spans import Span

Pair = tuple[str, str]

_END = object()


def read_columns(
    path: Path, english_first: bool, counts: Counter[str], span: Span | None = None, min_margin: float | None = None
) -> Iterator[Pair]:
    """Pairs (English, other) of a file with two columns and, it may be, a score, separated by tabs.

    Args:
      path: plain, `.xz` or `.gz`.
      english_first: the first column is English's.
      counts: `counts[reason] += 1` for every row that is dropped: "invalid_utf8", "long_line", "columns" (not 2 or 3
        columns), "margin" (a third column that is no number: a stray tab has shifted the columns), "empty" (a side
        without text).
      span: only the rows of this piece of the file, which begins and ends at a line's.
      min_margin: pairs with a smaller score are dropped, and counted as filters count. Those without one stay.

    Raises:
      CorpusError: the file is missing, truncated, corrupt or not of the format its name says.
    """
    for line in read_lines(path, counts, span=span):
        if not line.strip():
            counts["empty"] += 1
            continue
        columns = line.split("\t")
        if len(columns) not in (2, 3):
            counts["columns"] += 1
            continue
        if len(columns) == 3 and not _is_number(columns[2]):
            counts["margin"] += 1
            continue
        first, second = clean(columns[0]), clean(columns[1])
        if not first or not second:
            counts["empty"] += 1
            continue
        if min_margin is not None and len(columns) == 3 and float(columns[2]) < min_margin:
            count_before([(first, second)], counts)
            count_dropped("pair_min_margin", 1, len(first) + len(second), counts)
            continue
        yield (first, second) if english_first else (second, first)


def pair_lines(
    english: Iterable[str | None], other: Iterable[str | None], names: tuple[object, object], counts: Counter[str]
) -> Iterator[Pair]:
    """Pairs (English, other) of two texts whose lines belong together, read in step.

    Args:
      english, other: lines from `decode_lines`; None for one that was dropped, and counted, there.
      names: of the two, for messages.
      counts: "empty" for every pair with a side without text.

    Raises:
      CorpusError: unequal numbers of lines; says both. It comes after the pairs of the shorter text: whoever reads pairs must
        take them all back.
    """
    english, other = iter(english), iter(other)
    total = 0
    for first, second in itertools.zip_longest(english, other, fillvalue=_END):
        if first is _END or second is _END:
            rest = 1 + sum(1 for _ in (other if first is _END else english))
            lines = (total, total + rest) if first is _END else (total + rest, total)
            raise CorpusError(
                f"expected line-aligned text, found {lines[0]:,} lines in {names[0]} and {lines[1]:,} in {names[1]}. One of "
                "them is cut short or holds other text; get both again, or leave them out."
            )
        total += 1
        if not (isinstance(first, str) and isinstance(second, str)):
            continue
        first, second = clean(first), clean(second)
        if not first or not second:
            counts["empty"] += 1
            continue
        yield first, second


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
