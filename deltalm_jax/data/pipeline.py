"""The Beam pipeline of preparation: its stages, and how blocks, counts and errors travel between them.

Elements are small. On the local runner, which keeps a whole stage's output in memory, the blocks themselves lie in
files of the folder being prepared (`Plan.spool`); on other runners they travel through the runner's own shuffle.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np

from deltalm_jax.data.blocks import Digest, TextSource, encode_block, read_blocks
from deltalm_jax.data.shards import Shard, write_shard
from deltalm_jax.data.vocabulary import Vocabulary

_WORK, _PROGRESS, _RESULTS = ".work", "progress", "results.json"
_PARTS = "parts"
_MESSAGE = re.compile(r"<preparation-error ([A-Za-z0-9+/=]*)>")

BlockKey = tuple[int, str, int, int]  # task's place in the inputs, split, part, number of the block or shard in it
Stored = str | bytes


@dataclasses.dataclass(frozen=True)
class PartResult:
    """One part of a task's split after reading: its place, entry in the manifest, and counts of dropped lines."""

    index: int
    split: str
    part: int
    entry: dict[str, Any]
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """One run of blocks after writing: its place, summed counts, and the shard (None if no chunk came of it)."""

    index: int
    split: str
    part: int
    number: int
    counts: dict[str, int]
    shard: Shard | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every stage needs to know; travels to the workers.

    Attributes:
      inputs: the tasks.
      folder: the folder being prepared.
      chunk_lengths, validation_fraction, block_bytes, blocks_per_shard: as in `preparation.prepare`.
      spool: whether blocks lie in files between stages instead of travelling with the elements.
    """

    inputs: tuple[TextSource, ...]
    folder: str
    chunk_lengths: Mapping[str, int]
    validation_fraction: float
    block_bytes: int
    blocks_per_shard: int
    spool: bool

    @property
    def work_folder(self) -> Path:
        """For everything that is no part of prepared data; no task's name begins with a dot."""
        return Path(self.folder, _WORK)

    def put(self, name: str, payload: bytes) -> Stored:
        """Sets a block aside for a later stage."""
        if not self.spool:
            return payload
        path = self.work_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
        return str(path)

    def take(self, stored: Stored) -> bytes:
        """Gets a block that was set aside; it is gone afterwards, so that disk use does not add up."""
        if isinstance(stored, bytes):
            return stored
        payload = Path(stored).read_bytes()
        os.unlink(stored)
        return payload

    def note(self, event: str) -> None:
        """Records progress: one short appended line, which is atomic between processes of one machine."""
        with contextlib.suppress(OSError), (self.work_folder / _PROGRESS).open("ab", buffering=0) as file:
            file.write(f"{event}\n".encode())

    def progress(self) -> Counter[str]:
        """How often each event was noted so far."""
        try:
            return Counter((self.work_folder / _PROGRESS).read_text().split())
        except OSError:
            return Counter()

    def results(self) -> tuple[list[PartResult], list[ShardResult]]:
        """What the workers reported, in the order of the inputs."""
        content = json.loads((self.work_folder / _RESULTS).read_bytes())
        parts = [PartResult(**entry) for entry in content["parts"]]
        shards = [
            ShardResult(**{**entry, "shard": entry["shard"] and Shard(**entry["shard"])}) for entry in content["shards"]
        ]
        return (
            sorted(parts, key=lambda p: (p.index, p.split, p.part)),
            sorted(shards, key=lambda s: (s.index, s.split, s.part, s.number)),
        )

    def name_shards(self, parts: Iterable[ShardResult]) -> list[dict[str, Any]]:
        """Renames the shards of one split to `SPLIT-00000-of-00003`, now that their number is known."""
        written = [(part, part.shard) for part in parts if part.shard]
        entries = []
        for number, (part, shard) in enumerate(written):
            task = self.inputs[part.index].task
            file = f"{task}/{part.split}-{number:05d}-of-{len(written):05d}.array_record"
            Path(self.folder, shard.file).rename(Path(self.folder, file))
            entries.append(dataclasses.asdict(dataclasses.replace(shard, file=file)))
        return entries

    def remove_working_files(self) -> None:
        """Removes everything that is no part of prepared data, also what a repeated attempt may have left."""
        shutil.rmtree(self.work_folder, ignore_errors=True)
        for path in Path(self.folder).glob("*/.*.tmp"):
            path.unlink()


class WorkerError(Exception):
    """A failure with a message for the user, in a form that survives Beam's string traces between processes.

    Beam makes new exceptions of the same class from a changed message, so marking it is not the constructor's work.
    """


def _mark(message: str) -> str:
    return f"<preparation-error {base64.b64encode(message.encode()).decode()}>"


def find_message(error: BaseException | None) -> str | None:
    """The message of a `WorkerError` somewhere inside what Beam raised; None if there is none."""
    while error is not None:
        if match := _MESSAGE.search(str(error)):
            return base64.b64decode(match[1]).decode()
        error = error.__cause__ or error.__context__
    return None


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C lies behind what Beam raised: it makes a RuntimeError of it where a stage runs in this process."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns failures of files and of their content into a `WorkerError`; errors of the program pass through."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise WorkerError(_mark(f"{what}: {error}")) from error


class _Read(beam.DoFn):
    """(task, split, part) → ((task, split, part, block), its text); tagged: the part's `PartResult`."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def process(self, element: tuple[int, str, int]) -> Iterator[Any]:
        index, split, part = element
        plan, source = self.plan, self.plan.inputs[index]
        counts, digest = Counter[str](), Digest()
        with _explained(f"task {source.task}"):
            blocks = read_blocks(source, split, part, plan.validation_fraction, plan.block_bytes, counts, digest)
            for target, number, items in blocks:
                text = json.dumps(items, ensure_ascii=False).encode()
                stored = plan.put(f"{source.task}/{target}-{part}-{number}.json", text)
                plan.note("block")
                yield (index, target, part, number), stored
            entry = {**source.origin(split, part), "xxh3": digest.hexdigest()}
            result = PartResult(index, split, part, entry, dict(counts))
        plan.note("part")
        yield beam.pvalue.TaggedOutput(_PARTS, dataclasses.asdict(result))


class _Encode(beam.DoFn):
    """((task, split, part, block), its text) → ((task, split, part, shard), (block, its records, its counts))."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary):
        self.plan, self.vocabulary = plan, vocabulary

    def process(self, element: tuple[BlockKey, Stored]) -> Iterator[Any]:
        (index, split, part, number), stored = element
        plan, source = self.plan, self.plan.inputs[index]
        with _explained(f"task {source.task}"):
            items = json.loads(plan.take(stored))
            records, counts = encode_block(items, source.unit, self.vocabulary, plan.chunk_lengths[source.objective])
            out = plan.put(f"{source.task}/{split}-{part}-{number}.records", _join_records(records))
        plan.note("encoded")
        yield (index, split, part, number // plan.blocks_per_shard), (number, out, dict(counts))


class _Write(beam.DoFn):
    """((task, split, part, shard), its blocks) → its `ShardResult`, after writing the file."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def process(self, element: tuple[BlockKey, Iterable[tuple[int, Stored, dict[str, int]]]]) -> Iterator[Any]:
        (index, split, part, number), blocks = element
        ordered = sorted(blocks, key=lambda block: block[0])
        counts = sum((Counter(block[2]) for block in ordered), Counter[str]())
        task, shard = self.plan.inputs[index].task, None
        with _explained(f"task {task}"):
            if counts["chunks"]:
                records = (record for block in ordered for record in _split_records(self.plan.take(block[1])))
                file = f"{task}/{split}-{part}-{number}.array_record"
                shard = write_shard(self.plan.folder, file, records)
        self.plan.note("shard")
        yield dataclasses.asdict(ShardResult(index, split, part, number, dict(counts), shard))


class _Collect(beam.DoFn):
    """All results → one file that the driver reads."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def process(self, element: tuple[None, Iterable[dict[str, Any]]]) -> None:
        results = list(element[1])
        content = {
            "parts": [result for result in results if "entry" in result],
            "shards": [result for result in results if "shard" in result],
        }
        path = self.plan.work_folder / _RESULTS
        path.with_suffix(".tmp").write_text(json.dumps(content))
        path.with_suffix(".tmp").rename(path)


def build(pipeline: beam.Pipeline, plan: Plan, vocabulary: Vocabulary) -> None:
    """Adds the stages to a pipeline."""
    # Large tasks first: they are what the last worker waits for.
    parts = [
        (index, split, part)
        for index, source in enumerate(plan.inputs)
        for split in source.splits
        for part in range(source.parts(split))
    ]
    parts.sort(key=lambda key: -plan.inputs[key[0]].size(key[1]))
    read = (
        pipeline | "Parts" >> beam.Create(parts) | "Read" >> beam.ParDo(_Read(plan)).with_outputs(_PARTS, main="blocks")
    )
    shards = (
        read.blocks
        | "Spread" >> beam.Reshuffle()
        | "Encode" >> beam.ParDo(_Encode(plan, vocabulary))
        | "Shards" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(plan))
    )
    _ = (
        (read[_PARTS], shards)
        | "Results" >> beam.Flatten()
        | "Key" >> beam.Map(lambda result: (None, result))
        | "Together" >> beam.GroupByKey()
        | "Collect" >> beam.ParDo(_Collect(plan))
    )


def _join_records(records: list[bytes]) -> bytes:
    """Records in one piece: their number, their sizes (uint32), their bytes."""
    sizes = np.array([len(records), *map(len, records)], "<u4")
    return sizes.tobytes() + b"".join(records)


def _split_records(joined: bytes) -> Iterator[bytes]:
    """The inverse of `_join_records`."""
    count = int(np.frombuffer(joined, "<u4", 1)[0])
    sizes = np.frombuffer(joined, "<u4", count, offset=4)
    end = 4 * (count + 1)
    for size in sizes.tolist():
        yield joined[end : end + size]
        end += size
