"""A language of a corpus as a seqio data source, read from the corpus's own files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import seqio
import tensorflow as tf

from tasks.corpora import HELD_OUT_FRACTION, SPLITS, Corpus, CorpusFiles, read_split, require_items
from tasks.exiting import call, ending
from tasks.text import FIELDS

# Items handed from Python to TensorFlow at once: each hand-over takes Python's lock, for which 200 Tasks compete.
_ITEMS_AT_A_TIME = 64


class CorpusDataSource(seqio.DataSource):
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

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """False: all files are one shard, and seqio deals out its examples."""
        return False

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

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The examples in file order (`shuffle` is left to the Task's buffer, after chunking).

        Raises:
          ValueError: an unknown split, or a shard of several (seqio asks for none where a source has one shard).
        """
        if split not in self.splits:
            raise ValueError(f"Unknown split {split!r} of {self}: expected {' or '.join(self.splits)}.")
        if shard_info is not None and shard_info.num_shards > 1:
            raise ValueError(f"{self} has one shard; let the Task deal out the examples.")
        documents = self.corpus.unit == "documents"
        names = FIELDS[self.corpus.unit]

        def columns() -> Iterator[dict[str, list[str]]]:
            items = self.read(split)
            while not ending():
                with call():
                    batch = list(itertools.islice(items, _ITEMS_AT_A_TIME))
                if not batch:
                    return
                rows = [("\n".join(item),) for item in batch] if documents else batch
                yield {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}

        signature = {name: tf.TensorSpec([None], tf.string) for name in names}
        return tf.data.Dataset.from_generator(columns, output_signature=signature).unbatch()

    def __str__(self) -> str:
        return f"CorpusDataSource({self.corpus.name}, {self.language}, {self.files.train[0]})"

    __repr__ = __str__
