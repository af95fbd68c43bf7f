"""The test sets of WMT until 2020: a source and a reference in files that look like SGML, and are not quite.

The format cannot be parsed (attributes without quotes, bare `&`), so it is read as sacreBLEU reads it: a line that begins
with `<seg ` is a segment, its text stands between the tags, runs of white space count as one space, and character
references (`&amp;`) stay as they are. So a set is the same text, whether it comes from these files or from sacreBLEU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers import CorpusError
from tasks.downstream_readers.lines import bad_line, read_lines

_SEGMENT = re.compile(r"<seg\s[^>]*>(.*)</seg>")
_DOCUMENT = re.compile(r"<doc\s", re.IGNORECASE)
_DOCUMENT_ID = re.compile(r"docid\s*=\s*\"?([^\"\s>]+)", re.IGNORECASE)
_SEGMENT_ID = re.compile(r"<seg\s[^>]*id\s*=\s*\"?([^\"\s>]+)", re.IGNORECASE)

Segment = tuple[str, str, str]


def read_sgm_pair(source: Path, reference: Path, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Pairs (source, reference) of a test set, in its order.

    Args:
      source: `newstest2018-csen-src.cs.sgm`.
      reference: `newstest2018-csen-ref.en.sgm`.
      counts: grows by "lines".

    Raises:
      CorpusError: a file is missing, empty or damaged; a segment is not closed on its line or has no text; or the two do
        not have the same segments of the same documents.
    """
    sides = [list(_segments(path, counts)) for path in (source, reference)]
    for place, (first, second) in enumerate(zip(*sides, strict=False), 1):
        if first[:2] != second[:2]:
            raise CorpusError(
                f"Expected the same segments in {source} and {reference}, found segment {first[1]} of {first[0]!r} and "
                f"segment {second[1]} of {second[0]!r} at place {place:,}. They belong to different test sets."
            )
    if len(sides[0]) != len(sides[1]):
        raise CorpusError(
            f"Expected the same segments, found {len(sides[0]):,} in {source} and {len(sides[1]):,} in {reference}. One of "
            "them is cut short; fetch both again."
        )
    for first, second in zip(*sides, strict=True):
        yield first[2], second[2]


def _segments(path: Path, counts: Counter[str]) -> Iterator[Segment]:
    """(document, segment, text) of a file."""
    document, found = "", False
    for number, line in enumerate(read_lines(path, counts), 1):
        assert line is not None, "not lenient"
        if _DOCUMENT.match(line):
            match = _DOCUMENT_ID.search(line)
            document = match[1] if match else ""
        elif line.startswith("<seg "):
            text, identifier = _SEGMENT.match(line), _SEGMENT_ID.match(line)
            if text is None or identifier is None:
                raise bad_line(
                    path, number, "segment", '<seg id="…"> and </seg> on one line, found one without the other'
                )
            if not (joined := " ".join(text[1].split())):
                raise bad_line(path, number, "segment", "text in a segment, found none")
            found = True
            yield document, identifier[1], joined
    if not found:
        raise CorpusError(
            f'{path}: expected a test set of WMT with lines like <seg id="1">…</seg>, found no such line.'
        )
