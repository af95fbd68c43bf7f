"""The work of preparation on one block of text, as plain functions: what the Beam pipeline calls, free of Beam.

A block is a run of whole documents (or pairs) of one file, about `block_bytes` of text. Everything is decided inside a
block from the block alone, so the prepared data do not depend on who works on which block, or when.

What happens to the text: nothing that its reader or the vocabulary does already. Readers strip lines and remove control
characters; SentencePiece normalises (XLM-R's model: NFKC with its own rules), and Unicode normalisation must not be
done twice. A text that yields no ids is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltalm_jax.data.packing import join_and_cut, pack_pairs
from deltalm_jax.data.shards import encode_record
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.objectives.hashing import hash_keys, string_key

# What an objective's chunks are made of.
UNITS = {"span_corruption": "documents", "translation_span_corruption": "pairs"}
# Counters of readers and packing that tell of a change, not of a line left out.
CHANGED = ("long_document", "side_truncated", "rest_too_short")

Document = list[str]
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Input:
    """The text of one task.

    Attributes:
      task: name; also the folder of its shards.
      objective: a key of `UNITS`; it decides whether the reader gives documents or pairs.
      language: language code.
      reader: module-level function `(path, counts) -> iterator` of documents (lists of paragraphs) or of pairs
        (English, other); counts dropped lines by reason.
      train: file of the training text.
      validation: file of the held-out text; None: text is held out of `train` by hash.
    """

    task: str
    objective: str
    language: str
    reader: Callable[[Path, Counter[str]], Iterator[Any]]
    train: Path
    validation: Path | None = None

    def __post_init__(self) -> None:
        if self.objective not in UNITS:
            raise ValueError(f"task {self.task}: unknown objective {self.objective!r}; known: {', '.join(UNITS)}")

    @property
    def unit(self) -> str:
        """ "documents" or "pairs"."""
        return UNITS[self.objective]

    @property
    def files(self) -> dict[str, Path]:
        """Its files by split."""
        return {"train": self.train} | ({"validation": self.validation} if self.validation else {})


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
    source: Input, split: str, fraction: float, block_bytes: int, counts: Counter[str]
) -> Iterator[tuple[str, int, list[Any]]]:
    """Reads one file of a task into blocks.

    Args:
      source: the task.
      split: which of its files. The training file also gives the validation split where that has no file of its own.
      fraction: share of the texts held out then.
      block_bytes: a block is closed once it holds this much text, UTF-8.
      counts: of the reader.

    Yields:
      (split, number of the block within task and split, items). Blocks of both splits alternate as they fill up.

    Raises:
      ValueError, OSError: from the reader.
    """
    pairs = source.unit == "pairs"
    hold_out = split == "train" and source.validation is None
    items: dict[str, list[Any]] = {"train": [], "validation": []}
    sizes, numbers = Counter[str](), Counter[str]()
    for item in source.reader(source.files[split], counts):
        target = split
        if hold_out and is_held_out(item[0] if pairs else "\n".join(item), fraction):
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
    items: Sequence[Any], unit: str, vocabulary: Vocabulary, chunk_length: int
) -> tuple[list[bytes], Counter[str]]:
    """Tokenises a block and makes chunks of it.

    Args:
      items: documents or pairs.
      unit: which of the two.
      vocabulary: of the ids.
      chunk_length: ids in a full chunk.

    Returns:
      The chunks as records of a shard, and counts: "units" (documents or pairs that are in the chunks), "tokens",
      "chunks", "padding" (ids missing to full chunks), "no_ids" (paragraphs or pairs without any id), `CHANGED`.
    """
    counts = Counter[str]()
    if unit == "documents":
        chunks = _chunks_of_documents(items, vocabulary, chunk_length, counts)
    else:
        chunks = _chunks_of_pairs(items, vocabulary, chunk_length, counts)
    counts["chunks"] += len(chunks)
    counts["tokens"] += sum(map(len, chunks))
    counts["padding"] += chunk_length * counts["chunks"] - counts["tokens"]
    return [encode_record(chunk) for chunk in chunks], +counts


def _chunks_of_documents(
    documents: Sequence[Document], vocabulary: Vocabulary, chunk_length: int, counts: Counter[str]
) -> list[np.ndarray]:
    paragraphs = iter(vocabulary.encode_batch([text for document in documents for text in document]))
    encoded = [[next(paragraphs) for _ in document] for document in documents]
    counts["no_ids"] += sum(not ids for document in encoded for ids in document)
    counts["units"] += sum(any(document) for document in encoded)
    return join_and_cut(encoded, chunk_length, counts)


def _chunks_of_pairs(
    pairs: Sequence[Pair], vocabulary: Vocabulary, chunk_length: int, counts: Counter[str]
) -> list[np.ndarray]:
    english = vocabulary.encode_batch([pair[0] for pair in pairs])
    other = vocabulary.encode_batch([pair[1] for pair in pairs])
    order = english_first(pairs).tolist()
    ordered = [(a, b) if first else (b, a) for a, b, first in zip(english, other, order, strict=True)]
    chunks = pack_pairs(ordered, chunk_length, counts=counts)
    counts["no_ids"] += counts.pop("empty_side", 0)
    counts["units"] += len(pairs) - counts["no_ids"]
    return chunks
