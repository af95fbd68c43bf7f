"""What of a corpus is training text, and what is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from deltalm_jax.data.blocks import is_held_out
from deltalm_jax.data.readers import CorpusError
from tasks.corpora.corpus import Corpus
from tasks.corpora.finding import CorpusFiles

SPLITS = ("train", "validation")
HELD_OUT_FRACTION = 0.001

Item = TypeVar("Item")


def read_split(
    corpus: Corpus,
    files: CorpusFiles,
    split: str,
    counts: Counter[str] | None = None,
    held_out_fraction: float = HELD_OUT_FRACTION,
) -> Iterator[Any]:
    """Documents or pairs of one split, streamed; the two splits together are everything, and share nothing.

    Args:
      corpus: what the file is.
      files: from `find_files`.
      split: "train" or "validation".
      counts: reasons for dropped lines, as the readers count them.
      held_out_fraction: share held out by hash where there are no validation files.

    Raises:
      ValueError: another split.
      CorpusError: from the reader.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r} of {corpus.name}: expected {' or '.join(SPLITS)}.")
    wanted = split == "validation"
    for path in files.validation if wanted and files.validation else files.train:
        for item in corpus.read(path, counts):
            if files.validation or is_held_out(corpus.text_of(item), held_out_fraction) == wanted:
                yield item


def require_items(items: Iterable[Item], corpus: Corpus, path: Path, counts: Counter[str]) -> Iterator[Item]:
    """Passes items on; an error if there is none, for consumers that must not take an empty file for a small one.

    Raises:
      CorpusError: no document or pair at all; names the file and what was dropped.
    """
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        dropped = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items())) or "nothing"
        hint = ""
        if counts["columns"]:
            hint = (
                " CCAligned's document files have 5 columns; they belong into the folder ccaligned_documents, those of its "
                "folder sentence-aligned into ccaligned."
            )
        raise CorpusError(
            f"{path}: expected {corpus.unit} in the format of {corpus.title}, found none "
            f"(dropped lines: {dropped}).{hint} Remove the file, or leave the language out."
        )
