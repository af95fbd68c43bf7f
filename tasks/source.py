"""A language of a corpus as a seqio data source, read from the corpus's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tasks.corpora import HELD_OUT_FRACTION, SPLITS, Corpus, CorpusFiles, read_split, require_items
from tasks.one_shard import OneShardSource, dataset_from
from tasks.text import FIELDS


class CorpusDataSource(OneShardSource):
    """A language of a corpus, without a copy of it: `deltalm_jax.data.readers` as a seqio source.

    Examples are `{"text"}` (a document, paragraphs joined with a line feed), `{"english", "other"}` or `{"source",
    "target"}`, strings.

    Attributes:
      corpus: the corpus; its reader and objective.
      files: where the text is.
      language: language code.
      held_out_fraction: share held out by hash where `files` has no validation files.
    """

    def __init__(self, corpus: Corpus, files: CorpusFiles, held_out_fraction: float = HELD_OUT_FRACTION):
        """Reads nothing yet."""
        # No number of examples: knowing it would take reading everything.
        super().__init__(splits=SPLITS)
        self.corpus = corpus
        self.files = files
        self.language = files.language
        self.held_out_fraction = held_out_fraction

    def list_shards(self, split: str) -> Sequence[str]:
        """One, of all files of a split."""
        files = (split == "validation" and self.files.validation) or self.files.train
        return [" ".join(map(str, files))]

    def read(self, split: str) -> Iterator[Any]:
        """Documents or pairs of a split.

        Raises:
          CorpusError: unreadable, or no training text at all.
        """
        counts: Counter[str] = Counter()
        items = read_split(self.corpus, self.files, split, counts, self.held_out_fraction)
        # By hash, a small language may well have no validation text; training text there must be.
        return require_items(items, self.corpus, self.files.train[0], counts) if split == "train" else items

    def dataset_of(self, split: str) -> tf.data.Dataset:
        """The examples in file order."""
        documents = self.corpus.unit == "documents"

        def columns(items: list[Any]) -> Sequence[list[str]]:
            rows = [("\n".join(item),) for item in items] if documents else items
            return [list(column) for column in zip(*rows, strict=True)]

        return dataset_from(lambda: self.read(split), FIELDS[self.corpus.unit], columns)

    def __str__(self) -> str:
        return f"CorpusDataSource({self.corpus.name}, {self.language}, {self.files.train[0]})"

    __repr__ = __str__
