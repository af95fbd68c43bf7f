"""Prepared data on disk: chunks of token ids in ArrayRecord shards, and a manifest that says what they are.

    FOLDER/manifest.json                                  written last; a folder without it is not prepared data
    FOLDER/vocabulary.model                               the SentencePiece model the ids come from
    FOLDER/TASK/SPLIT-00000-00002.array_record            split (train or validation), part of the text, number in it

What a shard holds is said in `shards.py`. Imports neither TensorFlow, seqio nor Beam: a restarting training process
is ready in moments. Shapes: B chunks asked for, L chunk length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from deltalm_jax.data.shards import Shard, decode_records, digest_file, write_atomically
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.errors import UserError
from deltalm_jax.paths import as_path, files_below, is_remote

FORMAT = 3
MANIFEST = "manifest.json"
VOCABULARY_MODEL = "vocabulary.model"
SPLITS = ("train", "validation")
PREPARE_COMMAND = "python -m deltalm_jax.prepare --mixture=… --data_dir=… --vocabulary=… --output={folder}"

# What the ArrayRecord documentation names for random access: no read-ahead, no threads of its own.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# Where the system has a file at hand, seeking and reading one record takes 3 microseconds, and ArrayRecord's reading of
# several at once 5 to 30: it hands them to threads. Where storage has to answer first, those threads wait together. So
# a batch that took this many seconds a record lets the next ones be read by threads, and then it is tried again.
_SLOW_RECORD = 2e-4
_BATCHED_READS = 64


class PreparedDataError(UserError, ValueError):
    """Prepared data that is missing, unfinished, damaged or does not fit; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """One split of one task.

    Attributes:
      units: documents or pairs in it.
      tokens: ids stored, specials included, padding not.
      chunks: number of chunks.
      padding: ids that filling every chunk up to the chunk length adds.
      dropped: input left out, number by reason.
      shards: its files, in order; chunk numbers run through them.
      units_before, characters_before: what its files hold, before filters; None where that was not counted.
      dropped_characters: of what filters left out, by reason.
    """

    units: int
    tokens: int
    chunks: int
    padding: int
    dropped: Mapping[str, int]
    shards: tuple[Shard, ...]
    units_before: int | None = None
    characters_before: int | None = None
    dropped_characters: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """One task.

    Attributes:
      name: of the seqio Task.
      objective: it is for.
      language: language code.
      splits: by name; a split without text is absent.
      groups: kind of group ("script") → the group of languages that it belongs to ("Latn").
    """

    name: str
    objective: str
    language: str
    splits: Mapping[str, PreparedSplit]
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def tokens(self, split: str) -> int:
        """Ids stored for a split, padding not counted; 0 where the split is absent."""
        return self.splits[split].tokens if split in self.splits else 0

    def chunks(self, split: str) -> int:
        """Chunks of a split; 0 where it is absent."""
        return self.splits[split].chunks if split in self.splits else 0


def write_manifest(folder: str | Path, manifest: Mapping[str, Any]) -> None:
    """Writes manifest.json (with `format` and `digest` added), synced and renamed into place, and syncs the folder."""
    content = {"format": FORMAT, **manifest}
    content["digest"] = _manifest_digest(content)
    write_atomically(as_path(folder) / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Parses and checks manifest.json: it is there, whole (digest) and of this format.

    Raises:
      PreparedDataError: otherwise.
    """
    folder = as_path(folder)
    path = folder / MANIFEST
    make = f"Make it with: {PREPARE_COMMAND.format(folder=folder)}"
    if not path.is_file():
        found = "an unfinished or foreign folder" if folder.is_dir() else "nothing"
        raise PreparedDataError(f"Prepared data {folder}: expected a folder with {MANIFEST}, found {found}. {make}")
    try:
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
        found_format = manifest.get("format")
    except ValueError as error:
        raise PreparedDataError(f"{path}: damaged, not readable as JSON ({error}). Prepare again. {make}") from error
    if found_format != FORMAT:
        raise PreparedDataError(
            f"{path}: format {found_format!r}, this version reads format {FORMAT}. Prepare again, with --overwrite or into "
            f"another folder. {make}"
        )
    if manifest.get("digest") != _manifest_digest(manifest):
        raise PreparedDataError(f"{path}: its digest does not match, it was changed or damaged. Prepare again. {make}")
    return manifest


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest: the identity of the prepared data, whatever software versions have made them."""
    content = {key: value for key, value in manifest.items() if key not in ("digest", "versions")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class PreparedData:
    """Prepared data, opened for reading; safe to use from several threads. Made by `PreparedData.open`.

    Attributes:
      folder: where it is.
      manifest: the parsed manifest; `manifest["digest"]` identifies the data.
      chunk_lengths: ids in a full chunk, by objective.
      vocabulary_size: ids are below this.
      tasks: its tasks, in the manifest's order; a task's index is its place here.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], max_open_shards: int):
        self.folder = folder
        self.manifest = manifest
        self.chunk_lengths = {str(name): int(length) for name, length in manifest["chunk_lengths"].items()}
        self.vocabulary_size = int(manifest["vocabulary"]["size"])
        self.tasks = tuple(_parse_task(name, entry) for name, entry in manifest["tasks"].items())
        self._chunk_length_K = np.array([self.chunk_lengths[task.objective] for task in self.tasks], np.int64)
        self._tables = {split: _ShardTable(self.tasks, split) for split in SPLITS}
        self._readers: OrderedDict[str, Any] = OrderedDict()
        self._max_open_shards = max_open_shards
        self._batched_reads = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, max_open_shards: int = 512) -> PreparedData:
        """Opens a prepared folder after cheap checks: manifest whole and of this format, every shard there and of the
        right size. Contents are checked by `verify`.

        Args:
          path: the folder.
          max_open_shards: files kept open; the one unused longest is closed first (systems often allow 1,024).

        Raises:
          PreparedDataError: naming what is wrong and the command that makes the folder.
        """
        folder = as_path(path)
        manifest = read_manifest(folder)
        try:
            data = cls(folder, manifest, max_open_shards)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PreparedDataError(f"{folder / MANIFEST}: misses or misstates {error}. Prepare again.") from error
        data._check_files()
        return data

    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the ids are of, with the layout that the data were prepared with."""
        told = self.manifest["vocabulary"]
        return Vocabulary.load(
            self.folder / VOCABULARY_MODEL, sentinel_start=told["sentinel_start"], num_sentinels=told["num_sentinels"]
        )

    def chunk_count(self, task_index: int, split: str) -> int:
        """Chunks of a task's split; 0 where the split is absent."""
        return self.tasks[task_index].chunks(split)

    def read(self, split: str, task_B: np.ndarray, chunk_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads chunks, in the order asked for.

        Args:
          split: "train" or "validation".
          task_B: int [B], indices into `tasks`.
          chunk_B: int [B], chunk numbers within the task's split.

        Returns:
          tokens_BL int32, padded with 0, and lengths_B int32. L is the chunk length of the tasks' objective; of the
          longest, where tasks of several are read together (or none).

        Raises:
          IndexError: no such task or chunk.
          PreparedDataError: a shard cannot be read or holds what cannot be; names task, shard, record and id.
        """
        table = self._table(split)
        shard_B, record_B = table.locate(np.asarray(task_B, np.int64), np.asarray(chunk_B, np.int64))
        records: list[bytes] = [b""] * len(shard_B)
        began = time.perf_counter()
        order = np.lexsort((record_B, shard_B))
        for rows in np.split(order, np.flatnonzero(np.diff(shard_B[order])) + 1):
            if rows.size:
                shard = table.shards[shard_B[rows[0]]]
                for row, record in zip(rows.tolist(), self._read_shard(shard, record_B[rows].tolist()), strict=True):
                    records[row] = record

        if self._batched_reads:
            self._batched_reads -= 1
        elif time.perf_counter() - began > _SLOW_RECORD * len(records):
            self._batched_reads = _BATCHED_READS

        def where(row: int) -> str:
            file = self.folder / table.shards[shard_B[row]].file
            return f"task {self.tasks[int(task_B[row])].name}, shard {file}, record {record_B[row]}"

        advice = "The file is damaged; run verify() to find all such files and prepare the data again."
        try:
            limit_B = self._chunk_length_K[task_B]
            width = int(limit_B.max(initial=0)) or max(self.chunk_lengths.values())
            tokens_BL, lengths_B = decode_records(records, width, limit_B)
        except ValueError as error:
            raise PreparedDataError(f"{where(error.args[1])}: {error.args[0]}. {advice}") from error
        # Two passes over the batch without temporaries; the search for the place only where something is wrong.
        if tokens_BL.max(initial=0) >= self.vocabulary_size or np.count_nonzero(tokens_BL) != lengths_B.sum():
            real_BL = np.arange(width) < lengths_B[:, None]
            row, column = np.argwhere((tokens_BL >= self.vocabulary_size) | (real_BL & (tokens_BL == 0)))[0]
            raise PreparedDataError(
                f"{where(row)}: id {tokens_BL[row, column]} at position {column}, but ids lie in "
                f"1..{self.vocabulary_size - 1}. {advice}"
            )
        return tokens_BL, lengths_B

    def verify(self) -> int:
        """Digests every shard and the vocabulary's model anew; returns the number of files.

        Raises:
          PreparedDataError: naming every file whose content changed.
        """
        wrong, count = [], 1
        model = self.folder / VOCABULARY_MODEL
        if hashlib.sha256(model.read_bytes()).hexdigest() != self.manifest["vocabulary"]["sha256"]:
            wrong.append(str(model))
        for shard in self._shards():
            count += 1
            if digest_file(self.folder / shard.file) != shard.xxh3:
                wrong.append(str(self.folder / shard.file))
        if wrong:
            raise PreparedDataError(
                f"Prepared data {self.folder}: the content of {len(wrong)} of {count} files does not match the "
                f"manifest: {', '.join(wrong)}. Prepare again. {PREPARE_COMMAND.format(folder=self.folder)} --overwrite"
            )
        return count

    def _table(self, split: str) -> _ShardTable:
        if split not in self._tables:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(self._tables)}")
        return self._tables[split]

    def _shards(self) -> Iterator[Shard]:
        return (shard for table in self._tables.values() for shard in table.shards)

    def _check_files(self) -> None:
        """Raises unless every file of the manifest is there with its size."""
        sizes = files_below(self.folder)
        wrong = []
        for shard in self._shards():
            found = sizes.get(shard.file)
            if found != shard.bytes:
                size = "missing" if found is None else f"{found} bytes"
                wrong.append(f"{self.folder / shard.file}: expected {shard.bytes} bytes, found {size}")
        if not (self.folder / VOCABULARY_MODEL).is_file():
            wrong.append(f"{self.folder / VOCABULARY_MODEL}: missing")
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise PreparedDataError(
                f"Prepared data {self.folder} is not whole: {'; '.join(wrong[:3])}{more}. Copy it again, or prepare "
                f"again: {PREPARE_COMMAND.format(folder=self.folder)} --overwrite"
            )

    def _read_shard(self, shard: Shard, records: list[int]) -> list[bytes]:
        try:
            with self._lock:  # a reader has one position
                reader = self._reader(shard)
                if self._batched_reads:
                    return reader.read(records)
                found = []
                for record in records:
                    reader.seek(record)
                    found.append(reader.read())
                return found
        except (RuntimeError, ValueError, OSError, EOFError, IndexError) as error:
            raise PreparedDataError(
                f"{self.folder / shard.file}: cannot be read ({error}). "
                "Run verify(), then copy or prepare the data again."
            ) from error

    def _reader(self, shard: Shard) -> Any:
        """The shard's reader, opened at first use."""
        reader = self._readers.get(shard.file)
        if reader is None:
            if is_remote(self.folder):
                raise ValueError(
                    "ArrayRecord reads files only; copy the folder to a disk, or mount it (gcsfuse for gs://)"
                )
            reader = array_record_module.ArrayRecordReader(str(self.folder / shard.file), _READER_OPTIONS)
            # A cut file opens without complaint, with no records in it.
            if reader.num_records() != shard.chunks:
                raise ValueError(f"expected {shard.chunks} records, found {reader.num_records()}")
            self._readers[shard.file] = reader
            if len(self._readers) > self._max_open_shards:
                self._readers.popitem(last=False)
        else:
            self._readers.move_to_end(shard.file)
        return reader


class _ShardTable:
    """All shards of one split in one row, task after task, so that a chunk is found by one binary search."""

    def __init__(self, tasks: Sequence[PreparedTask], split: str):
        parts = [task.splits[split].shards if split in task.splits else () for task in tasks]
        self.split, self.names = split, [task.name for task in tasks]
        self.shards = [shard for shards in parts for shard in shards]
        self.chunks_K = np.array([sum(shard.chunks for shard in shards) for shards in parts], np.int64)
        self._task_start_K = np.cumsum(self.chunks_K) - self.chunks_K
        sizes = np.array([shard.chunks for shard in self.shards], np.int64)
        self._shard_end = np.cumsum(sizes)
        self._shard_start = self._shard_end - sizes

    def locate(self, task_B: np.ndarray, chunk_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and record number within it; raises IndexError for a chunk that does not exist."""
        if task_B.shape != chunk_B.shape or task_B.ndim != 1:
            raise ValueError(f"tasks {task_B.shape} and chunks {chunk_B.shape} must be two arrays [B]")
        known_B = (task_B >= 0) & (task_B < len(self.names))
        counts_B = np.where(known_B, self.chunks_K[np.where(known_B, task_B, 0)], 0) if len(self.names) else 0 * task_B
        bad = np.flatnonzero((chunk_B < 0) | (chunk_B >= counts_B))
        if bad.size:
            task, chunk = int(task_B[bad[0]]), int(chunk_B[bad[0]])
            name = self.names[task] if 0 <= task < len(self.names) else f"number {task} of {len(self.names)}"
            raise IndexError(f"task {name}: {self.split} chunk {chunk} of {int(counts_B[bad[0]])}")
        place_B = self._task_start_K[task_B] + chunk_B
        shard_B = np.searchsorted(self._shard_end, place_B, side="right")
        return shard_B, place_B - self._shard_start[shard_B]


def _parse_task(name: str, entry: Mapping[str, Any]) -> PreparedTask:
    """A task's entry of the manifest; raises KeyError or ValueError for what is missing or contradicts itself."""
    splits = {}
    for split, value in entry["splits"].items():
        if split not in SPLITS:
            raise ValueError(f"task {name}: split {split!r}, known are {', '.join(SPLITS)}")
        for shard in value["shards"]:
            if Path(shard["file"]).parts[0] != name or ".." in Path(shard["file"]).parts:
                raise ValueError(f"task {name}: shard {shard['file']!r} lies outside the task's folder")
        shards = tuple(Shard(s["file"], int(s["chunks"]), int(s["bytes"]), s["xxh3"]) for s in value["shards"])
        if sum(shard.chunks for shard in shards) != value["chunks"]:
            raise ValueError(f"task {name}, {split}: chunks of the shards do not add up to {value['chunks']}")
        units = next(value[name] for name in ("documents", "pairs", "examples") if name in value)
        before = value.get("before", {})
        splits[split] = PreparedSplit(
            units,
            value["tokens"],
            value["chunks"],
            value["padding"],
            dict(value["dropped"]),
            shards,
            before.get("units"),
            before.get("characters"),
            dict(value.get("dropped_characters", {})),
        )
    return PreparedTask(name, entry["objective"], entry["language"], splits, dict(entry.get("groups", {})))
