"""The published data of a downstream task as a seqio source: looked for when the task is opened, wherever they may be.

Nothing is read or looked for at registration. Opening a split raises one CorpusError if its data are nowhere; a validation or
test split is read whole at that moment, so whatever is wrong with it is known before anything is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
from absl import logging

from deltalm_jax.data.readers import CorpusError
from tasks.downstream_places import Place, Row
from tasks.one_shard import OneShardSource, dataset_from

SPLITS = ("train", "validation", "test")
# How far the number of rows may be from the published one, which is often a rounded one.
ROWS_TOLERANCE = 0.03

# Between references on their way to TensorFlow. Readers remove control characters, so no text has it.
_SEPARATOR = "\x1e"


@dataclasses.dataclass(frozen=True)
class Publication:
    """Who publishes data and on what terms: what a person needs to know to get them.

    Attributes:
      title: "WMT 2018, Czech-English".
      homepage: where it is described.
      terms: of use, as far as known.
      how: by split, what to do to have it in one of the places.
      rows: published number of rows by split; None where it is not known.
    """

    title: str
    homepage: str
    terms: str
    how: Mapping[str, str]
    rows: Mapping[str, int | None]


class DownstreamSource(OneShardSource):
    """A downstream task's data.

    Examples are `{"source", "target"}`, strings, and `references`, a vector of strings: the target alone where a split has no
    others.

    Attributes:
      name: of the task, for messages.
      places: by split, where its data may be; the first place that has them is read.
      publication: who publishes them.
    """

    def __init__(self, name: str, places: Mapping[str, Sequence[Place]], publication: Publication):
        """Looks for nothing yet."""
        super().__init__(splits=tuple(places))
        self.name = name
        self.places = places
        self.publication = publication

    def list_shards(self, split: str) -> Sequence[str]:
        """One."""
        return [f"{self.name}-{split}"]

    def read(self, split: str, counts: Counter[str]) -> Iterator[Row]:
        """Rows of a split in the order of its files.

        Args:
          split: one of `splits`.
          counts: what was left out, by reason; see the readers.

        Raises:
          CorpusError: at once, if the data are nowhere; later, as the readers.
        """
        read = next((found for place in self.places[split] if (found := place.find()) is not None), None)
        if read is None:
            raise self._missing(split)
        return self._counted(read(counts), split, counts)

    def dataset_of(self, split: str) -> tf.data.Dataset:
        """The examples in file order.

        Raises:
          CorpusError: the data are nowhere; damage in a validation or test split, or at the beginning of the training split.
        """
        # What was begun to see whether there is anything; the first epoch goes on with it.
        begun: list[Iterator[Row]] = []
        held: list[Row] = []
        if split == "train":
            rows = self.read(split, Counter())
            begun.append(itertools.chain([next(rows)], rows))
        else:
            held = list(self.read(split, Counter()))

        def items() -> Iterator[Row]:
            return iter(held) if held else begun.pop() if begun else self.read(split, Counter())

        def columns(rows: list[Row]) -> Sequence[list[str]]:
            references = [_SEPARATOR.join(row.references or (row.target,)) for row in rows]
            return [row.source for row in rows], [row.target for row in rows], references

        dataset = dataset_from(items, ("source", "target", "references"), columns)
        return dataset.map(lambda row: {**row, "references": tf.strings.split(row["references"], _SEPARATOR)})

    def _counted(self, rows: Iterator[Row], split: str, counts: Counter[str]) -> Iterator[Row]:
        """Passes rows on; no row is an error, another number than the published one a warning."""
        number = 0
        for row in rows:
            number += 1
            yield row
        left_out = {reason: count for reason, count in sorted(counts.items()) if reason != "lines"}
        dropped = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items()) or "nothing"
        if not number:
            raise CorpusError(f"{self.name}, {split}: expected examples, found none (left out: {dropped}).")
        published = self.publication.rows.get(split)
        if published and abs(number - published) > ROWS_TOLERANCE * published:
            logging.warning(
                "%s, %s: %s has %s rows, found %s (left out: %s). Scores may not be comparable.",
                self.name, split, self.publication.title, f"{published:,}", f"{number:,}", dropped,
            )  # fmt: skip
        elif left_out:
            logging.info("%s, %s: %s rows, left out: %s", self.name, split, f"{number:,}", dropped)

    def _missing(self, split: str) -> CorpusError:
        publication = self.publication
        # In one line, as all messages: whoever passes one on may keep the first only.
        looked_at = "; ".join(name for place in self.places[split] for name in place.looked_at)
        published = publication.rows.get(split)
        rows = f"about {published:,} rows" if published else "rows (how many is not published)"
        return CorpusError(
            f"task {self.name}, split {split!r}: expected {rows} of {publication.title}, found nothing. "
            f"Looked for: {looked_at}. Published at {publication.homepage}; terms: {publication.terms} "
            f"{publication.how[split]}"
        )

    def __str__(self) -> str:
        return f"DownstreamSource({self.name})"

    __repr__ = __str__
