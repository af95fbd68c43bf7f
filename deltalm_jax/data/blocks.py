"""The work of preparation on one block of text, as plain functions: what the Beam pipeline calls, free of Beam.

A block is a run of whole documents (or pairs) of one file, about `block_bytes` of text. Everything is decided inside a
block from the block alone, so the prepared data do not depend on who works on which block, or when.

What happens to the text: the filters that are asked for, and nothing that its reader or the vocabulary does already.
Readers strip lines and remove control characters; SentencePiece normalises (XLM-R's model: NFKC with its own rules), and
Unicode normalisation must not be done twice. A text that yields no ids is left out and counted.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from deltalm_jax.data.filters.counting import CHANGING, count_dropped
from deltalm_jax.data.filters.pairs import too_different
from deltalm_jax.data.packing import join_and_cut, pack_examples, pack_pairs
from deltalm_jax.data.parts import PART_BYTES, Piece, divide
from deltalm_jax.data.shards import digest_into, encode_record
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.objectives.hashing import hash_keys, string_key
from deltalm_jax.paths import state_of

# Chunks of examples that are being filled at once.
_OPEN_CHUNKS = 64
# What an objective's chunks are made of.
UNITS = {"span_corruption": "documents", "translation_span_corruption": "pairs", "sequence_to_sequence": "examples"}
# Counters of readers, packing and filters that tell of a change, not of a line left out.
CHANGED = ("long_document", "side_truncated", "source_truncated", "rest_too_short", *CHANGING)

Document = list[str]
Pair = tuple[str, str]
Sides = tuple[list[int], list[int]]
Digest = xxhash.xxh3_128


@dataclasses.dataclass(frozen=True)
class ExampleSettings:
    """How chunks are made of examples. Lengths are in ids, `</s>` included.

    Attributes:
      source_length: of a chunk's sources in all, and so of the longest; longer ones are cut.
      target_length: of its targets; examples with longer ones are left out.
      packing: whether several short examples share a chunk.
      source_prefix: text put before every source, such as a tag for the language to translate to; `{target}` in it stands for
        what is behind the last hyphen of the task's language ("de-en": "en").
    """

    source_length: int = 256
    target_length: int = 256
    packing: bool = True
    source_prefix: str = ""

    def prefix(self, language: str) -> str:
        """The text put before the sources of a task of this language."""
        return self.source_prefix.replace("{target}", language.rsplit("-", 1)[-1])


class TextSource(Protocol):
    """The text of one task, wherever it lies: `Input`, or `mixture.TaskInput` for Tasks of one's own."""

    @property
    def task(self) -> str:
        """Name; also the folder of its shards."""

    @property
    def objective(self) -> str:
        """A key of `UNITS`."""

    @property
    def language(self) -> str:
        """Language code."""

    @property
    def groups(self) -> Mapping[str, str]:
        """Kind of group ("script") → the group of languages that it belongs to ("Latn")."""

    @property
    def unit(self) -> str:
        """ "documents", "pairs" or "examples"."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", and "validation" if it has held-out text of its own; else text is held out of "train" by hash."""

    def parts(self, split: str) -> int:
        """Pieces that the split's text is read in, each by one worker. They depend on the text alone."""

    def read(self, split: str, part: int, counts: Counter[str], digest: Digest) -> Iterator[Any]:
        """Documents (lists of paragraphs), pairs (English, other) or examples (source, target) of a part.

        Dropped ones are counted by reason.

        `digest` is updated with what identifies the text; at the end of reading it is `self.digest(split, part)`.
        """

    def origin(self, split: str, part: int) -> dict[str, Any]:
        """What the manifest says of the part beside its digest: what is known of it without reading."""

    def digest(self, split: str, part: int) -> str:
        """Identity of the part's text, xxh3 (128 bit, hexadecimal)."""

    def identity(self, split: str, part: int) -> str | None:
        """What changes when the part's text does, known without reading it; None where nothing is."""

    def part_size(self, split: str, part: int) -> int:
        """Bytes on disk; 0 where that is not known."""

    def size(self, split: str) -> int:
        """Bytes on disk; 0 where that is not known."""

    def problem(self, split: str) -> str | None:
        """Why it cannot be read, as far as that shows without reading."""

    def where(self, split: str) -> str:
        """The place of the split, for messages."""


@dataclasses.dataclass(frozen=True)
class Input:
    """The text of one task in files: a `TextSource`. Its parts are runs of consecutive files, or pieces of a large one.

    Attributes:
      task: name; also the folder of its shards.
      objective: a key of `UNITS`; it decides whether the reader gives documents or pairs.
      language: language code.
      reader: module-level function `(path, counts) -> iterator` of documents (lists of paragraphs) or of pairs
        (English, other); counts dropped lines by reason. One with a third parameter, `span`, can read a piece of a file.
      train: files of the training text, in the order in which they are read.
      validation: files of the held-out text; none: text is held out of `train` by hash.
      groups: kind of group → the group of languages that it belongs to.
      part_bytes: size of a part, as it lies on disk; see `parts.divide`.
      options: further arguments of the reader.
    """

    task: str
    objective: str
    language: str
    reader: Callable[..., Iterator[Any]]
    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    part_bytes: int = PART_BYTES
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.objective not in UNITS:
            raise ValueError(f"task {self.task}: unknown objective {self.objective!r}; known: {', '.join(UNITS)}")

    @property
    def unit(self) -> str:
        """ "documents", "pairs" or "examples"."""
        return UNITS[self.objective]

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Its files by split."""
        return {"train": self.train} | ({"validation": self.validation} if self.validation else {})

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that have files."""
        return tuple(self.files)

    def parts(self, split: str) -> int:
        """As `parts.divide` says."""
        return len(self._parts[split])

    def read(self, split: str, part: int, counts: Counter[str], digest: Digest) -> Iterator[Any]:
        """What the reader gives of each file.

        Raises:
          ValueError, OSError: from the reader; or a file that has changed since the parts were made.
        """
        for piece in self._parts[split][part]:
            if piece.path.stat().st_size != piece.state[0]:
                raise ValueError(f"{piece.path} has changed since the preparation began; start it again")
            span = {} if piece.span is None else {"span": piece.span}
            yield from self.reader(piece.path, counts, **span, **self.options)
            digest_into(digest, piece.path, *piece.stored)

    def origin(self, split: str, part: int) -> dict[str, Any]:
        """Names and sizes of the files."""
        return {"files": [piece.describe() for piece in self._parts[split][part]]}

    def digest(self, split: str, part: int) -> str:
        """Of the files' bytes, as they are on disk."""
        digest = Digest()
        for piece in self._parts[split][part]:
            digest_into(digest, piece.path, *piece.stored)
        return digest.hexdigest()

    def identity(self, split: str, part: int) -> str | None:
        """Of the files' sizes and times, of who reads them, of whether text is held out of them, and of what filters ask."""
        reader = f"{self.reader.__module__}.{self.reader.__qualname__}"
        pieces = [piece.identity() for piece in self._parts[split][part]]
        # Files that the reader opens beside those that it is given.
        companions: Callable[[Path], list[Path]] = getattr(self.reader, "companions", lambda path: [])
        beside = [state_of(path) for piece in self._parts[split][part] for path in companions(piece.path)]
        about = [
            self.objective,
            self.language,
            dict(self.groups),
            dict(self.options),
            reader,
            self.splits,
            pieces,
            beside,
        ]
        return Digest(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def part_size(self, split: str, part: int) -> int:
        """Of the files, or of the piece."""
        return sum(piece.size for piece in self._parts[split][part])

    def size(self, split: str) -> int:
        """Of the files."""
        return sum(path.stat().st_size for path in self.files[split])

    def problem(self, split: str) -> str | None:
        """A file is missing or empty."""
        for path in self.files[split]:
            if not path.is_file():
                return f"{path} is missing"
            if not path.stat().st_size:
                return f"{path} is empty"
        return None

    def where(self, split: str) -> str:
        """The first file's path, and how many there are."""
        first, *more = self.files[split]
        return f"{first} and {len(more)} more" if more else str(first)

    @functools.cached_property
    def _parts(self) -> dict[str, list[tuple[Piece, ...]]]:
        """By split. Found once, by the process that starts the preparation: it travels to the workers with the rest."""
        in_spans = "span" in inspect.signature(self.reader).parameters
        return {split: divide(files, self.part_bytes, in_spans) for split, files in self.files.items()}


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document's text, or a pair's English side, is validation data: true for `fraction` of all texts.

    By hash alone: the same English sentence is held out in every language, and copies of it stay together.
    """
    return int(string_key(text)) < fraction * 2**64


def english_first(pairs: Sequence[Pair]) -> np.ndarray:
    """Which side of each pair (English, other) stands first in its chunk: a fair coin, by hash of both sides.

    Returns:
      bool [N], true where English does.
    """
    english_N = np.array([string_key(pair[0]) for pair in pairs], np.uint64)
    other_N = np.array([string_key(pair[1]) for pair in pairs], np.uint64)
    return (hash_keys(english_N, other_N) & np.uint64(1)).astype(bool)


def read_blocks(
    source: TextSource, split: str, part: int, fraction: float, block_bytes: int, counts: Counter[str], digest: Digest
) -> Iterator[tuple[str, int, list[Any]]]:
    """Reads one part of a task's split into blocks.

    Args:
      source: the task.
      split: which of its splits. "train" also gives the validation split where the task has none of its own.
      part: which of the split's parts.
      fraction: share of the texts held out then.
      block_bytes: a block is closed once it holds this much text, UTF-8.
      counts: of dropped lines.
      digest: of the text; see `TextSource.read`.

    Yields:
      (split, number of the block within split and part, items). Blocks of both splits alternate as they fill up.

    Raises:
      ValueError, OSError: from the reader.
    """
    documents = source.unit == "documents"
    hold_out = split == "train" and "validation" not in source.splits
    items: dict[str, list[Any]] = {"train": [], "validation": []}
    sizes, numbers = Counter[str](), Counter[str]()
    for item in source.read(split, part, counts, digest):
        target = split
        if hold_out and is_held_out("\n".join(item) if documents else item[0], fraction):
            target = "validation"
        items[target].append(item)
        sizes[target] += sum(len(text.encode()) for text in item)
        if sizes[target] >= block_bytes:
            yield target, numbers[target], items[target]
            items[target], sizes[target] = [], 0
            numbers[target] += 1
    for target, rest in items.items():
        if rest:
            yield target, numbers[target], rest


def encode_block(
    items: Sequence[Any],
    unit: str,
    vocabulary: Vocabulary,
    chunk_length: int,
    threads: int = 1,
    max_length_ratio: float | None = None,
    examples: ExampleSettings | None = None,
    prefix: str = "",
) -> tuple[list[bytes], Counter[str]]:
    """Tokenises a block and makes chunks of it.

    Args:
      items: documents, pairs or examples.
      unit: which of these.
      vocabulary: of the ids.
      chunk_length: ids in a full chunk.
      threads: for tokenising; the result does not depend on them.
      max_length_ratio: `FilterConfig.pair_max_length_ratio`, which takes the ids to know.
      examples: of examples; `chunk_length` is the sum of its lengths.
      prefix: text put before every example's source.

    Returns:
      The chunks as records of a shard, and counts: "units" (documents, pairs or examples that are in the chunks), "tokens",
      "chunks", "padding" (ids missing to full chunks), "no_ids" (paragraphs, pairs or examples without any id),
      "long_target" (examples left out for it), `CHANGED`.
    """
    counts = Counter[str]()
    if unit == "documents":
        chunks = _chunks_of_documents(items, vocabulary, chunk_length, threads, counts)
    elif unit == "pairs":
        sides = _encoded_sides(items, vocabulary, threads)
        order = english_first(items).tolist()
        sides = [side if first else side[::-1] for side, first in zip(sides, order, strict=True)]
        sides = _similar(items, sides, max_length_ratio, counts)
        chunks = pack_pairs(sides, chunk_length, counts=counts)
        _count_sides(len(sides), counts)
    else:
        examples = examples or ExampleSettings()
        items = [(prefix + source, target) for source, target in items]
        sides = _similar(items, _encoded_sides(items, vocabulary, threads), max_length_ratio, counts)
        open_chunks = _OPEN_CHUNKS if examples.packing else 0
        chunks = pack_examples(sides, examples.source_length, examples.target_length, open_chunks, counts)
        _count_sides(len(sides) - counts["long_target"], counts)
    counts["chunks"] += len(chunks)
    counts["tokens"] += sum(map(len, chunks))
    counts["padding"] += chunk_length * counts["chunks"] - counts["tokens"]
    return [encode_record(chunk) for chunk in chunks], +counts


def _chunks_of_documents(
    documents: Sequence[Document], vocabulary: Vocabulary, chunk_length: int, threads: int, counts: Counter[str]
) -> list[np.ndarray]:
    paragraphs = iter(vocabulary.encode_batch([text for document in documents for text in document], threads))
    encoded = [[next(paragraphs) for _ in document] for document in documents]
    counts["no_ids"] += sum(not ids for document in encoded for ids in document)
    counts["units"] += sum(any(document) for document in encoded)
    return join_and_cut(encoded, chunk_length, counts)


def _encoded_sides(pairs: Sequence[Pair], vocabulary: Vocabulary, threads: int) -> list[Sides]:
    """Both sides of each pair or example, encoded."""
    first, second = (vocabulary.encode_batch([pair[side] for pair in pairs], threads) for side in (0, 1))
    return list(zip(first, second, strict=True))


def _similar(
    pairs: Sequence[Pair], sides: list[Sides], max_length_ratio: float | None, counts: Counter[str]
) -> list[Sides]:
    """The encoded pairs or examples but those whose lengths differ too much, which are counted."""
    if max_length_ratio is None:
        return sides
    bad = too_different(sides, max_length_ratio)
    characters = sum(len(text) for pair, dropped in zip(pairs, bad, strict=True) if dropped for text in pair)
    count_dropped("pair_max_length_ratio", sum(bad), characters, counts)
    return [side for side, dropped in zip(sides, bad, strict=True) if not dropped]


def _count_sides(kept: int, counts: Counter[str]) -> None:
    counts["no_ids"] += counts.pop("empty_side", 0)
    counts["units"] += kept - counts["no_ids"]
