"""Parallel text of one's own: two columns in one file, or two files line by line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.errors import CorpusError
from deltalm_jax.data.readers.files import decode_lines, read_bytes
from deltalm_jax.data.readers.names import codes_in, is_english
from deltalm_jax.data.readers.pairs import Pair, pair_lines, read_columns
from deltalm_jax.paths import as_path

_COLUMNS = re.compile(r"\.tsv(\.xz|\.gz)?$")
_PACKED = re.compile(r"\.(xz|gz)$")
_ALIGNED = re.compile(r"^(?P<stem>.+)\.(?P<code>[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)$")
_ENDINGS = ("", ".xz", ".gz")
ENGLISH_SIDE = "en"


def read_parallel(
    path: str | Path, counts: Counter[str] | None = None, min_margin: float | None = None
) -> Iterator[Pair]:
    """Pairs (English, other) of a file of two columns, or of two line-aligned files.

    Args:
      path: `sw-en.tsv` (also `news.sw-en.tsv`, or any `.tsv` in a folder `sw-en`), whose first column is then Swahili; or
        `news.sw`, beside which `news.en` lies. Each plain, `.xz` or `.gz`. Of `news.en` itself nothing is given: its lines
        come with the other side's. (It is among the files of a task all the same: what it holds is part of the text.)
      counts: of dropped rows, by reason: as `pairs.read_columns`, `pairs.pair_lines`.
      min_margin: drop pairs whose score, in a third column, is below.

    Raises:
      CorpusError: the names do not say which side is English, a file is missing or damaged, or the two have unequal numbers
        of lines; it says both.
    """
    path = as_path(path)
    counts = Counter() if counts is None else counts
    if is_columns(path):
        first, _ = column_codes(path)
        yield from read_columns(path, is_english(first), counts, min_margin=min_margin)
        return
    code, english = aligned_code(path), english_beside(path)
    if code is None or english is None:
        name = _english_name(path) or "NAME.en beside NAME.sw"
        raise CorpusError(f"{path}: expected its English side beside it, {name} (plain, .xz or .gz); it is not there.")
    if code == ENGLISH_SIDE:
        return
    yield from pair_lines(
        decode_lines(read_bytes(english), counts), decode_lines(read_bytes(path), counts), (english, path), counts
    )


def _companions(path: Path) -> list[Path]:
    """What `read_parallel` opens beside the file that it is given."""
    english = None if is_columns(path) else english_beside(path)
    return [] if english is None or english == path else [english]


# Whoever keeps what came of a file has to look at these too (`Input.identity`).
read_parallel.companions = _companions  # type: ignore[attr-defined]


def is_columns(path: Path) -> bool:
    """Whether a name is that of a file of two columns."""
    return bool(_COLUMNS.search(path.name))


def column_codes(path: Path) -> tuple[str, str]:
    """The codes of the two columns of a `.tsv` file, from its name or else its folder's.

    Raises:
      CorpusError: neither has two codes, of which one is English's.
    """
    codes = codes_in(_COLUMNS.sub("", path.name)) or codes_in(path.parent.name)
    if codes is None or is_english(codes[0]) == is_english(codes[1]):
        raise CorpusError(
            f"{path}: expected a name like sw-en.tsv or news.en-sw.tsv.gz, or a folder of that name, with en on one "
            "side: the name says which column is English."
        )
    return codes


def aligned_code(path: Path) -> str | None:
    """The code that a line-aligned file ends in: `news.sw.gz` → "sw"; None where the name has no such ending."""
    match = _ALIGNED.match(_PACKED.sub("", path.name))
    return match["code"] if match else None


def english_beside(path: Path) -> Path | None:
    """The English side of a line-aligned file, which may be that file; None where there is none.

    Raises:
      CorpusError: there are two, packed and not.
    """
    name = _english_name(path)
    found = [path.with_name(name + ending) for ending in _ENDINGS if name and path.with_name(name + ending).is_file()]
    if len(found) > 1:
        raise CorpusError(
            f"{path.parent}: {' and '.join(f.name for f in found)} are the same text twice. Keep one of them."
        )
    return found[0] if found else None


def _english_name(path: Path) -> str:
    """`news.sw.gz` → `news.en`; "" where the name has no code at its end."""
    match = _ALIGNED.match(_PACKED.sub("", path.name))
    return f"{match['stem']}.{ENGLISH_SIDE}" if match else ""
