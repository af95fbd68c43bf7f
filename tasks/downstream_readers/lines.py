"""Line-aligned files and files of two columns, read strictly.

Pretraining can do without a line; a test set cannot, and a line that is lost on one side only shifts all that follow. So what
is wrong is an error that names file and line. Of training text from the web (`lenient`) bad lines are dropped, on both sides
at once, and counted. A byte order mark and CRLF are no fault; all else is as in `deltalm_jax.data.readers.files`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltalm_jax.data.readers import CorpusError, clean
from deltalm_jax.data.readers.files import decode_lines, read_bytes

# Some hundred times the longest that a model of 512 positions can read: no sentence, and no article either.
MAX_LINE_BYTES = 1 << 17

_REASONS = {
    "long_line": "a line of at most LIMIT bytes, found a longer one: line ends may be missing",
    "invalid_utf8": "UTF-8, found bytes that are not: the file is in another encoding, or damaged",
    "nul": "text, found a NUL character: the file is in UTF-16, or damaged",
    "empty": "text, found an empty line",
}
_END = object()


def read_lines(
    path: Path, counts: Counter[str], *, lenient: bool = False, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[str | None]:
    """Lines without control characters and white space around them; "" for an empty one.

    Args:
      path: plain, `.gz` or `.xz`.
      counts: grows by "lines", and for each line that is dropped by "long_line", "invalid_utf8" or "nul".
      lenient: give None in the place of a bad line, instead of raising.
      max_bytes: of a line.

    Raises:
      CorpusError: a missing, damaged or empty file; or a bad line.
    """
    for line in _lines(path, counts, lenient, max_bytes):
        yield None if line is None else clean(line)


def _lines(path: Path, counts: Counter[str], lenient: bool, max_bytes: int) -> Iterator[str | None]:
    """Lines as they stand; all else as `read_lines`."""
    number = 0
    dropped: Counter[str] = Counter()
    for line in decode_lines(read_bytes(path), dropped, max_bytes):
        number += 1
        if line is not None and "\0" in line:
            dropped["nul"] += 1
            line = None
        if line is None:
            (reason,) = dropped
            if not lenient:
                raise bad_line(path, number, reason, max_bytes=max_bytes)
            counts[reason] += 1
            dropped.clear()
        yield line
    if not number:
        raise CorpusError(f"{path}: expected lines of text, found an empty file. Fetch the file again.")
    counts["lines"] += number


def read_aligned(
    paths: Sequence[Path],
    counts: Counter[str],
    *,
    lenient: bool = False,
    drop_empty: bool = False,
    max_bytes: int = MAX_LINE_BYTES,
) -> Iterator[tuple[str, ...]]:
    """Rows of files whose lines belong together, read in step.

    Args:
      paths: two or more files.
      counts: grows as `read_lines`, and by "empty" for each row that is dropped because a side has no text.
      lenient: drop rows with a bad or an empty line.
      drop_empty: drop rows with an empty line, but raise for bad ones.
      max_bytes: of a line.

    Raises:
      CorpusError: as `read_lines`; an empty line; or unequal numbers of lines, after the rows of the shortest file.
    """
    iterators = [read_lines(path, counts, lenient=lenient, max_bytes=max_bytes) for path in paths]
    total = 0
    for row in itertools.zip_longest(*iterators, fillvalue=_END):
        if any(line is _END for line in row):
            raise _unequal(paths, iterators, row, total)
        total += 1
        texts = [line for line in row if isinstance(line, str)]
        if len(texts) < len(row):
            continue
        if not all(texts):
            if not (lenient or drop_empty):
                raise bad_line(paths[texts.index("")], total, "empty")
            counts["empty"] += 1
            continue
        yield tuple(texts)


def read_columns(
    path: Path, counts: Counter[str], *, lenient: bool = False, drop_empty: bool = False
) -> Iterator[tuple[str, str]]:
    """Rows of a file of two columns, separated by one tab.

    Args:
      path, lenient, drop_empty: as `read_aligned`.
      counts: as `read_aligned`, and "columns" for each dropped row that does not have two.

    Raises:
      CorpusError: as `read_lines`; an empty side, or a row that does not have two columns.
    """
    # Not `read_lines`, which makes a space of a tab.
    for number, line in enumerate(_lines(path, counts, lenient, MAX_LINE_BYTES), 1):
        if line is None:
            continue
        columns = line.split("\t")
        if len(columns) != 2:
            if not lenient:
                raise bad_line(path, number, "columns", f"two columns separated by a tab, found {len(columns)}")
            counts["columns"] += 1
            continue
        first, second = map(clean, columns)
        if not first or not second:
            if not (lenient or drop_empty):
                raise bad_line(path, number, "empty", "text in both columns, found an empty one")
            counts["empty"] += 1
            continue
        yield first, second


def bad_line(path: Path, number: int, reason: str, expected: str = "", max_bytes: int = MAX_LINE_BYTES) -> CorpusError:
    """The error of one line; `reason` is a key of the counts, `expected` stands in for the text of one without."""
    text = _REASONS.get(reason, expected).replace("LIMIT", f"{max_bytes:,}")
    return CorpusError(f"{path}, line {number:,}: expected {text}. Fetch the file again.")


def _unequal(
    paths: Sequence[Path], iterators: Sequence[Iterator[str | None]], row: Sequence[object], total: int
) -> CorpusError:
    numbers = [
        total if line is _END else total + 1 + sum(1 for _ in iterator)
        for line, iterator in zip(row, iterators, strict=True)
    ]
    found = ", ".join(f"{number:,} lines in {path}" for number, path in zip(numbers, paths, strict=True))
    return CorpusError(
        f"Expected files whose lines belong together, found {found}. One of them is cut short or belongs to another set; "
        "fetch all of them again."
    )
