"""CC100's files: UTF-8, one paragraph a line, a blank line between documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.files import MAX_DOCUMENT_BYTES, clean, read_lines
from deltalm_jax.data.readers.spans import AFTER_BLANK_LINE, Span
from deltalm_jax.paths import as_path


def read_cc100(path: str | Path, counts: Counter[str] | None = None, span: Span | None = None) -> Iterator[list[str]]:
    """Documents of a CC100 file, each a non-empty list of paragraphs.

    Blank lines separate documents; several in a row make no empty document. A dropped line does not end its document.

    Args:
      path: `.txt`, `.txt.xz` or `.txt.gz`.
      counts: `counts[reason] += 1` for every line that is dropped: "invalid_utf8", "long_line" (over `MAX_LINE_BYTES`),
        "empty" (nothing but control characters); and "long_document" for every document given out in parts because
        it is over `MAX_DOCUMENT_BYTES`.
      span: only the documents of this piece of the file, which begins and ends at blank lines.

    Raises:
      CorpusError: the file is missing, truncated, corrupt or not of the format its name says.
    """
    counts = Counter() if counts is None else counts
    document: list[str] = []
    size = 0
    for line in read_lines(as_path(path), counts, span=span, boundary=AFTER_BLANK_LINE):
        if not line.strip():
            if document:
                yield document
            document, size = [], 0
            continue
        paragraph = clean(line)
        if not paragraph:
            counts["empty"] += 1
            continue
        if document and size + len(line) > MAX_DOCUMENT_BYTES:
            counts["long_document"] += 1
            yield document
            document, size = [], 0
        document.append(paragraph)
        size += len(line)
    if document:
        yield document
