"""CCAligned's sentence files: `source TAB target [TAB LASER margin]`.

The codes in the file name say which column is which; `en_XX` stands on either side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.files import CorpusError, clean, read_lines

ENGLISH = "en_XX"

_PAIR_NAME = re.compile(r"^([a-z]{2,3}_[A-Za-z]{2,4})-([a-z]{2,3}_[A-Za-z]{2,4})\.tsv(\.xz|\.gz)?$")


def read_ccaligned(path: str | Path, counts: Counter[str] | None = None) -> Iterator[tuple[str, str]]:
    """Sentence pairs of a CCAligned file as (English, other), whichever column holds English.

    Args:
      path: `xx_YY-en_XX.tsv` or `en_XX-xx_YY.tsv`, plain, `.xz` or `.gz`.
      counts: `counts[reason] += 1` for every row that is dropped: "invalid_utf8", "long_line", "columns" (not 2 or 3
        columns), "margin" (a third column that is no number: a stray tab has shifted the columns), "empty" (a side
        without text).

    Raises:
      CorpusError: as `read_cc100`, or the name does not say which side is English.
    """
    path = Path(path)
    counts = Counter() if counts is None else counts
    first, _ = pair_codes(path)
    for line in read_lines(path, counts):
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
        source, target = clean(columns[0]), clean(columns[1])
        if not source or not target:
            counts["empty"] += 1
            continue
        yield (source, target) if first == ENGLISH else (target, source)


def pair_codes(path: str | Path) -> tuple[str, str]:
    """The two codes in a CCAligned file name, in column order: `en_XX-zh_CN.tsv.xz` → ("en_XX", "zh_CN").

    Raises:
      CorpusError: the name has another form, or not exactly one of the codes is `en_XX`.
    """
    match = _PAIR_NAME.match(Path(path).name)
    if not match or (match[1] == ENGLISH) == (match[2] == ENGLISH):
        raise CorpusError(
            f"{path}: expected a name like de_DE-en_XX.tsv.xz or en_XX-zh_CN.tsv.xz (one side en_XX; plain, .xz or .gz)"
            ": the name says which column is English."
        )
    return match[1], match[2]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
