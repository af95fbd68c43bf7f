"""CCAligned's files: sentences, `source TAB target [TAB LASER margin]`, and whole documents in five columns.

The codes in the file name say which column is which; `en_XX` stands on either side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import MAX_DOCUMENT_BYTES, MAX_LINE_BYTES, clean, read_lines
from deltalm_jax.data.readers.pairs import Pair, read_columns
from deltalm_jax.data.readers.spans import Span
from deltalm_jax.paths import as_path

ENGLISH = "en_XX"

_PAIR_NAME = re.compile(r"^([a-z]{2,3}_[A-Za-z]{2,4}(?:_zaw)?)-([a-z]{2,3}_[A-Za-z]{2,4}(?:_zaw)?)\.tsv(\.xz|\.gz)?$")


def read_ccaligned(
    path: str | Path,
    counts: Counter[str] | None = None,
    span: Span | None = None,
    min_margin: float | None = None,
) -> Iterator[Pair]:
    """Sentence pairs of a CCAligned file as (English, other), whichever column holds English.

    Args:
      path: `xx_YY-en_XX.tsv` or `en_XX-xx_YY.tsv`, plain, `.xz` or `.gz`.
      counts: of dropped rows, by reason: as `pairs.read_columns`.
      span: only the pairs of this piece of the file.
      min_margin: drop pairs whose LASER margin is below.

    Raises:
      CorpusError: as `read_columns`, or the name does not say which side is English.
    """
    first, _ = pair_codes(path)
    counts = Counter() if counts is None else counts
    yield from read_columns(as_path(path), first == ENGLISH, counts, span, min_margin)


def read_ccaligned_documents(path: str | Path, counts: Counter[str] | None = None) -> Iterator[Pair]:
    """Pairs of lines from CCAligned's document pairs: `domain TAB URL TAB text TAB URL TAB text`, with | for line breaks.

    The two documents of a row were found to be translations of each other; their lines were not aligned. Where both have
    the same number of lines (empty ones not counted), the lines are taken to correspond, and each makes a pair. All
    other rows are left out: a chunk of translation span corruption holds 254 tokens of each side, and the first 254
    tokens of two long pages need not say the same.

    Args:
      path: as of `read_ccaligned`.
      counts: `counts[reason] += 1` for every row that is dropped: "invalid_utf8", "long_line" (over 8 MiB), "columns"
        (not 5), "empty" (a side without text), "line_counts" (the sides' numbers of lines differ); and "long_line" for
        every pair of lines of which one is over `MAX_LINE_BYTES`.

    Raises:
      CorpusError: as `read_ccaligned`.
    """
    path = as_path(path)
    counts = Counter() if counts is None else counts
    english_first = pair_codes(path)[0] == ENGLISH
    for row in read_lines(path, counts, 2 * MAX_DOCUMENT_BYTES):
        columns = row.split("\t")
        if len(columns) != 5:
            counts["columns" if row.strip() else "empty"] += 1
            continue
        source, target = (_lines(columns[2]), _lines(columns[4]))
        if not source or not target:
            counts["empty"] += 1
            continue
        if len(source) != len(target):
            counts["line_counts"] += 1
            continue
        for pair in zip(source, target, strict=True):
            if max(len(side.encode()) for side in pair) > MAX_LINE_BYTES:
                counts["long_line"] += 1
            else:
                yield pair if english_first else pair[::-1]


def pair_codes(path: str | Path) -> tuple[str, str]:
    """The two codes in a CCAligned file name, in column order: `en_XX-zh_CN.tsv.xz` → ("en_XX", "zh_CN").

    Raises:
      CorpusError: the name has another form, or not exactly one of the codes is `en_XX`.
    """
    match = _PAIR_NAME.match(as_path(path).name)
    if not match or (match[1] == ENGLISH) == (match[2] == ENGLISH):
        raise CorpusError(
            f"{path}: expected a name like de_DE-en_XX.tsv.xz or en_XX-zh_CN.tsv.xz (one side en_XX; plain, .xz or .gz)"
            ": the name says which column is English."
        )
    return match[1], match[2]


def _lines(cell: str) -> list[str]:
    return [line for line in map(clean, cell.split("|")) if line]
