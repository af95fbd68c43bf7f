"""Prepared data written straight from known ids, so that tests of the stream and the loop need no preparation."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deltalm_jax.data.chunks import PreparedData, write_manifest
from deltalm_jax.data.shards import encode_record, write_shard
from deltalm_jax.data.vocabulary import BOS_ID, EOS_ID, Vocabulary
from tasks.corpora import SAMPLE_DIR

SAMPLE_VOCABULARY = SAMPLE_DIR / "vocabulary.model"


def chunk(task_number: int, chunk_number: int, length: int) -> np.ndarray:
    """Ids that say which chunk this is: its first id names the task, its second the chunk, the rest is a counter."""
    rest = 1000 + (np.arange(length - 2) * 7 + 13 * chunk_number + task_number) % 5000
    return np.concatenate([[4 + task_number, 100 + chunk_number], rest]).astype(np.int32)


def chunk_of_pairs(task_number: int, chunk_number: int, length: int) -> np.ndarray:
    """The same with what is asked of chunks of translation pairs: `<s>`, then sides of two ids, each closed by `</s>`."""
    sides = chunk(task_number, chunk_number, 2 * (length - 1) // 3 // 2 * 2)
    ids = np.full(1 + len(sides) // 2 * 3, EOS_ID, np.int32)
    ids[0] = BOS_ID
    ids[1::3], ids[2::3] = sides[::2], sides[1::2]
    return ids[: 1 + len(ids[1:]) // 6 * 6]


def write_toy_data(
    folder: Path,
    tasks: Mapping[str, tuple[str, int, int]],
    chunk_length: int | Mapping[str, int] = 32,
    shards: int = 1,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    languages: Mapping[str, str] | None = None,
    pairs: bool = False,
) -> PreparedData:
    """Writes and opens a prepared folder.

    Args:
      folder: made new.
      tasks: name → (objective, training chunks, validation chunks).
      chunk_length: ids in a chunk, of all objectives or by objective; every fifth chunk is shorter.
      shards: files per split.
      groups: name → groups of languages it belongs to, by kind of group.
      languages: name → language code; default: the name.
      pairs: whether chunks of translation span corruption are made of pairs.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = {}
    names = dict.fromkeys(objective for objective, _, _ in tasks.values())
    lengths = {name: chunk_length if isinstance(chunk_length, int) else chunk_length[name] for name in names}
    for number, (name, (objective, train, validation)) in enumerate(tasks.items()):
        (folder / name).mkdir()
        splits = {}
        length = lengths[objective]
        for split, count, offset in (("train", train, 0), ("validation", validation, 500)):
            if not count:
                continue
            make = chunk_of_pairs if pairs and objective == "translation_span_corruption" else chunk
            chunks = [make(number, offset + i, length - 9 * (i % 5 == 4)) for i in range(count)]
            parts = [p for p in np.array_split(np.arange(count), shards) if len(p)]
            written = [
                write_shard(
                    folder,
                    f"{name}/{split}-{i:05}-of-{len(parts):05}.array_record",
                    [encode_record(chunks[j]) for j in part],
                )
                for i, part in enumerate(parts)
            ]
            tokens = sum(map(len, chunks))
            splits[split] = {
                "documents": count,
                "tokens": tokens,
                "chunks": count,
                "padding": count * length - tokens,
                "dropped": {},
                "shards": [{"file": s.file, "chunks": s.chunks, "bytes": s.bytes, "xxh3": s.xxh3} for s in written],
            }
        entries[name] = {"objective": objective, "language": (languages or {}).get(name, name), "splits": splits}
        if groups and name in groups:
            entries[name]["groups"] = dict(groups[name])
    shutil.copy(SAMPLE_VOCABULARY, folder / "vocabulary.model")
    manifest = {
        "mixture": "deltalm_pretrain",
        "chunk_lengths": lengths,
        "vocabulary": Vocabulary.load(SAMPLE_VOCABULARY).describe(),
        "tasks": entries,
    }
    write_manifest(folder, manifest)
    return PreparedData.open(folder)
