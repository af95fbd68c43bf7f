"""CC-Net's files: JSON objects, one a line, with the paragraphs of a document in `raw_content`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deltalm_jax.data.readers.files import MAX_DOCUMENT_BYTES, in_parts, read_lines, to_paragraphs
from deltalm_jax.paths import as_path

TEXT_FIELD = "raw_content"


def read_cc_net(path: str | Path, counts: Counter[str] | None = None) -> Iterator[list[str]]:
    """Documents of a CC-Net file, each a non-empty list of paragraphs: the lines of `raw_content`.

    Args:
      path: `de_head_0000.json.gz`, `.json.xz` or `.json`.
      counts: `counts[reason] += 1` for every document that is dropped: "invalid_utf8", "long_line" (over 8 MiB of JSON),
        "bad_json", "no_text" (no object, or no string in `raw_content`), "empty"; for every paragraph that is:
        "lone_surrogate" (half of a UTF-16 pair, as JSON's `\\ud800` can make), "long_line", "empty" (nothing but control
        characters); and "long_document" for every cut through a document of over `MAX_DOCUMENT_BYTES`.

    Raises:
      CorpusError: the file is missing, truncated, corrupt or not of the format its name says.
    """
    counts = Counter() if counts is None else counts
    for line in read_lines(as_path(path), counts, 2 * MAX_DOCUMENT_BYTES):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):  # also numbers of thousands of digits, and brackets in brackets
            counts["bad_json"] += 1
            continue
        text = document.get(TEXT_FIELD) if isinstance(document, dict) else None
        if not isinstance(text, str):
            counts["no_text"] += 1
        elif not text.strip():
            counts["empty"] += 1
        else:
            yield from in_parts(to_paragraphs(text.split("\n"), counts), counts)
