"""Duplicates among all texts of a language, whichever corpora they come from: three passes that meet in files.

    1. parts of the text     →  sorted keys of each segment                   `write_keys`
    2. ranges of keys        →  which texts of which segment come again       `find_repeated`
    3. parts of the text     →  the preparation, without those                `load_repeated`

The text is read (and filtered) once more than it would be, and travels nowhere; what is exchanged is 16 bytes a key. Nothing
is held but a segment's keys, or one range of one language's. Every step is a function of a part or a range, so any runner
can spread them, and neither it nor the number of workers or ranges changes what comes out. Of equal texts the first is kept:
held-out text before training text, so that what is validated on is not trained on; then in order of tasks, parts and
blocks.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from deltalm_jax.data.blocks import TextSource
from deltalm_jax.data.filters import FilterConfig
from deltalm_jax.data.filters.duplicates import document_keys, pair_keys, paragraph_keys, repeated
from deltalm_jax.data.shards import write_atomically
from deltalm_jax.paths import make_folder, names_below

# Sorting a range takes about 50 bytes a key: 400 MB for this many.
_KEYS_IN_A_RANGE = 8 << 20
_MAX_RANGES = 1024
# What a paragraph or pair of web text takes on disk, compressed.
_BYTES_A_TEXT = 20
_KEY = np.dtype([("key", "<u8"), ("block", "<u4"), ("place", "<u4")])
_PLACE = np.dtype([("block", "<u4"), ("place", "<u4")])
_KEYS, _REPEATED = "keys", "repeated"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of blocks of one part: what makes a shard.

    Attributes:
      index: of the task, its place in the inputs.
      split: that the blocks belong to.
      part, number: of the part, and of the segment in it.
    """

    index: int
    split: str
    part: int
    number: int

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """Texts of what sorts first are kept."""
        return self.split != "validation", self.index, self.part, self.number


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison of all texts of a kind in a language.

    Attributes:
      kind: "documents", "paragraphs" or "pairs".
      step: comparisons of a lower step come first, and what they drop is not looked at.
      folder: of its files; made for these texts alone.
      members: the tasks, their places in the inputs.
      ranges: how many ranges the keys are divided into.
    """

    kind: str
    step: int
    folder: Path
    members: tuple[int, ...]
    ranges: int

    def make_folders(self) -> None:
        """Makes the folder, inside one that is there."""
        for folder in (self.folder, self.folder / _KEYS, self.folder / _REPEATED):
            make_folder(folder)


def plan_comparisons(
    inputs: Sequence[TextSource], config: FilterConfig, folder: Path, digests: Mapping[tuple[str, str], str]
) -> list[Comparison]:
    """The comparisons that the settings ask for.

    Documents come before paragraphs: a document that goes as a whole then leaves no remains, and its paragraphs do
    not count as seen.

    Args:
      inputs: the tasks.
      config: the settings.
      folder: for the folders of all comparisons.
      digests: of the texts, by unit and language; what is found is good for these texts only.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, source in enumerate(inputs):
        groups.setdefault((source.unit, source.language), []).append(index)
    comparisons = []
    for (unit, language), members in groups.items():
        texts = sum(inputs[n].size(split) for n in members for split in inputs[n].splits) / _BYTES_A_TEXT
        for step, kind in enumerate(config.deduplicates(unit)):
            # A document has ten paragraphs, or more.
            keys = texts * config.minhash_bands / 10 if kind == "documents" else texts
            ranges = min(max(int(keys) // _KEYS_IN_A_RANGE, 1), _MAX_RANGES)
            where = folder / f"{kind}-{language}-{digests[unit, language]}"
            comparisons.append(Comparison(kind, step, where, tuple(members), ranges))
    return comparisons


def write_keys(
    comparison: Comparison, segment: Segment, blocks: Mapping[int, Sequence[Any]], config: FilterConfig
) -> None:
    """Writes the keys of a segment's texts, sorted; equal keys in the order of the text.

    Args:
      comparison: for which.
      segment: whose.
      blocks: its items by number of the block.
      config: the settings.
    """
    found = [np.zeros(0, _KEY)]
    for number, items in blocks.items():
        keys, places = _keys(items, comparison.kind, config)
        rows = np.zeros(len(keys), _KEY)
        rows["key"], rows["block"], rows["place"] = keys, number, places
        found.append(rows)
    rows = np.concatenate(found)
    rows = rows[np.argsort(rows["key"], kind="stable")]
    ranges = np.arange(comparison.ranges)
    ends = np.searchsorted(_range_of(rows["key"], comparison.ranges), ranges, side="right")
    digests = np.array([[number, text_digest(items)] for number, items in blocks.items()], np.uint64).reshape(-1, 2)
    _write(comparison.folder / _KEYS / _name(segment), (digests, ends), rows)


def find_repeated(comparison: Comparison, number: int) -> None:
    """Reads one range of the keys of all segments, and writes which texts have a key that has come before."""
    result = comparison.folder / _REPEATED / str(number)
    if result.exists():  # from a run that was ended, for the same texts
        return
    folder = comparison.folder / _KEYS
    # A name with a dot is what a killed worker was writing.
    names = [name for name in names_below(folder) if not name.startswith(".")]
    segments = sorted(map(_segment, names), key=lambda segment: segment.rank)
    rows = []
    for segment in segments:
        with (folder / _name(segment)).open("rb") as file:
            _, ends = np.load(file), np.load(file)
            rows.append(_read(file, _KEY, int(ends[number - 1]) if number else 0, int(ends[number])))
    places = []
    for of_segment, again in zip(rows, repeated([of_segment["key"] for of_segment in rows]), strict=True):
        place = np.zeros(np.count_nonzero(again), _PLACE)
        place["block"], place["place"] = of_segment["block"][again], of_segment["place"][again]
        places.append(np.unique(place))
    kept = [(segment, place) for segment, place in zip(segments, places, strict=True) if len(place)]
    table = np.array([_numbers(segment) for segment, _ in kept], np.int64).reshape(-1, 4)
    ends = np.cumsum([len(place) for _, place in kept], dtype=np.int64)
    _write(result, (table, ends), np.concatenate([np.zeros(0, _PLACE), *(place for _, place in kept)]))


@dataclasses.dataclass(frozen=True)
class Repeated:
    """What a comparison drops of one segment.

    Attributes:
      places: by block, the numbers of texts in it (int64, ascending); blocks without any are absent.
      digests: by block, of the items that were compared.
    """

    places: Mapping[int, np.ndarray]
    digests: Mapping[int, int]

    def of_block(self, number: int, items: Sequence[Any]) -> np.ndarray:
        """The numbers of texts of a block that go.

        Raises:
          ValueError: the items are not those that were compared.
        """
        if self.digests.get(number) != text_digest(items):
            raise ValueError(
                "reading and filtering the same text twice has given different text: its files have changed meanwhile, or "
                "the filters' language_identifier does not always say the same of a text"
            )
        return self.places.get(number, np.zeros(0, np.int64))


def load_repeated(comparison: Comparison, segment: Segment) -> Repeated:
    """What `find_repeated` found, in all ranges, for one segment."""
    with (comparison.folder / _KEYS / _name(segment)).open("rb") as file:
        digests = {int(number): int(digest) for number, digest in np.load(file)}
    found = [np.zeros(0, _PLACE)]
    for number in range(comparison.ranges):
        with (comparison.folder / _REPEATED / str(number)).open("rb") as file:
            table, ends = np.load(file), np.load(file)
            (rows,) = np.nonzero((table == _numbers(segment)).all(1))
            for row in rows.tolist():
                found.append(_read(file, _PLACE, int(ends[row - 1]) if row else 0, int(ends[row])))
    places = np.unique(np.concatenate(found))
    blocks, starts = np.unique(places["block"], return_index=True)
    by_block = np.split(places["place"].astype(np.int64), starts[1:]) if len(blocks) else []
    return Repeated(dict(zip(blocks.tolist(), by_block, strict=True)), digests)


def text_digest(items: Sequence[Any]) -> int:
    """64-bit digest of a block's items."""
    return xxhash.xxh3_64_intdigest(json.dumps(items, ensure_ascii=False).encode())


def _keys(items: Sequence[Any], kind: str, config: FilterConfig) -> tuple[np.ndarray, np.ndarray]:
    if kind == "documents":
        return document_keys(items, config.minhash_bands, config.minhash_rows, config.minhash_ngram)
    if kind == "paragraphs":
        return paragraph_keys([text for document in items for text in document])
    return pair_keys(items)


def _range_of(key_N: np.ndarray, ranges: int) -> np.ndarray:
    """Which of so many equal ranges of 64-bit numbers each key is in; ascending with the key."""
    return (key_N >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)


def _name(segment: Segment) -> str:
    return "-".join(map(str, dataclasses.astuple(segment)))


def _segment(name: str) -> Segment:
    index, split, part, number = name.split("-")
    return Segment(int(index), split, int(part), int(number))


def _numbers(segment: Segment) -> tuple[int, int, int, int]:
    return segment.index, int(segment.split != "validation"), segment.part, segment.number


def _write(path: Path, tables: Sequence[np.ndarray], rows: np.ndarray) -> None:
    """Small arrays as numpy writes them, and then rows by themselves, so that some of them can be read."""
    head = io.BytesIO()
    for table in tables:
        np.save(head, table)
    write_atomically(path, head.getvalue() + rows.tobytes())


def _read(file: IO[bytes], dtype: np.dtype, begin: int, end: int) -> np.ndarray:
    """Rows from `begin` up to `end`, of those that follow where the file stands."""
    file.seek(begin * dtype.itemsize, 1)
    content = file.read((end - begin) * dtype.itemsize)
    if len(content) < (end - begin) * dtype.itemsize:
        raise ValueError(
            f"{getattr(file, 'name', 'a file of keys')} is cut short; remove the folder OUTPUT.partial and start again"
        )
    return np.frombuffer(content, dtype)
