"""The work of preparation on one part of the text: read, tokenise, cut, write shards. Plain functions, free of Beam.

A worker does all of it in one go, a block at a time, so text lies nowhere in between: there is nothing to shuffle, and
no disk is needed but for the shards. What a shard holds is decided by the part's text and the settings alone, and its
name by its place; whoever does the same part again writes the same bytes under the same name.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalm_jax.data.blocks import Digest, ExampleSettings, TextSource, encode_block, read_blocks
from deltalm_jax.data.chunks import VOCABULARY_MODEL
from deltalm_jax.data.filtering import BlockFilter, Filtering
from deltalm_jax.data.finished import Finished, PartResult, ShardResult
from deltalm_jax.data.golden import golden_digest
from deltalm_jax.data.parts import PART_BYTES
from deltalm_jax.data.shards import write_shard
from deltalm_jax.data.vocabulary import Vocabulary
from deltalm_jax.errors import UserError

# A part that is so much larger than the usual one cannot be divided: its worker uses all cores of its machine.
_LARGE = 4


class WorkerMismatchError(UserError, RuntimeError):
    """A worker's installation is not the one that the preparation was started with."""


class OrphanedError(RuntimeError):
    """The process that started this worker has ended, so nobody waits for its work."""


@dataclasses.dataclass(frozen=True)
class PartKey:
    """One part to do: the task's place in the inputs, split, number of the part, and `Filtering.identity` of it."""

    index: int
    split: str
    part: int
    identity: str | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every worker needs to know.

    Attributes:
      inputs: the tasks.
      folder: where the shards go; its vocabulary model is there already.
      records: where the records go; see `Finished`.
      vocabulary: the manifest's entry, without the model.
      chunk_lengths, examples, validation_fraction, block_bytes, blocks_per_shard: as in `preparation.prepare`.
      filtering: what is left out of the text.
      driver: process id of the driver where workers are its children, else None.
    """

    inputs: tuple[TextSource, ...]
    folder: Path
    records: Path
    vocabulary: Mapping[str, Any]
    chunk_lengths: Mapping[str, int]
    examples: ExampleSettings
    validation_fraction: float
    block_bytes: int
    blocks_per_shard: int
    filtering: Filtering
    driver: int | None = None

    @property
    def finished(self) -> Finished:
        """What is finished."""
        return Finished(self.records, self.folder)

    def keys(self) -> list[PartKey]:
        """All parts, in the order of the inputs."""
        return [
            PartKey(index, split, part, self.filtering.identity(index, split, part))
            for index, source in enumerate(self.inputs)
            for split in source.splits
            for part in range(source.parts(split))
        ]

    def load_vocabulary(self) -> Vocabulary:
        """The vocabulary, from the folder; and makes sure that this machine encodes as the driver's does.

        Raises:
          WorkerMismatchError: it does not.
        """
        told = self.vocabulary
        vocabulary = Vocabulary.load(
            self.folder / VOCABULARY_MODEL,
            sentinel_start=told["sentinel_start"],
            num_sentinels=told["num_sentinels"],
        )
        if vocabulary.fingerprint != told["fingerprint"] or golden_digest(vocabulary) != told["golden_encodings"]:
            here = vocabulary.describe()["sentencepiece_version"]
            raise WorkerMismatchError(
                f"this worker encodes text differently than the process that started the preparation (SentencePiece {here} "
                f"here, {told['sentencepiece_version']} there): install the same versions everywhere (constraints.txt)"
            )
        return vocabulary


def prepare_part(plan: Plan, vocabulary: Vocabulary, key: PartKey) -> None:
    """Makes the shards of one part and puts them on record; what is on record already is not done again.

    Raises:
      ValueError, OSError: from reading or writing.
      OrphanedError: the driver is gone.
    """
    source, finished = plan.inputs[key.index], plan.finished
    place = (source.task, key.split, key.part)
    # Text that cannot be told from other text without reading it (`identity` None) is read in any case.
    if key.identity is not None and finished.part(*place, key.identity):
        return
    counts, digest = Counter[str](), Digest()
    shards = {split: _OpenShard(plan, key, source, split) for split in ("train", "validation")}
    threads, block_filter = _threads(source, key), BlockFilter(plan.filtering)
    try:
        blocks = read_blocks(source, key.split, key.part, plan.validation_fraction, plan.block_bytes, counts, digest)
        for split, number, items in blocks:
            check_driver(plan.driver)
            shard = shards[split]
            shard.move_to(number // plan.blocks_per_shard)
            if not shard.done:
                shard.add(*_encode(plan, vocabulary, block_filter, key, split, number, items, threads))
    except ValueError:
        # Where compressed text is damaged, what came before need not have been right: the check stands at the end.
        finished.forget(*place)
        raise
    for shard in shards.values():
        shard.close()
    entry = {**source.origin(key.split, key.part), "xxh3": digest.hexdigest()}
    numbers = {split: shard.number + 1 for split, shard in shards.items() if shard.number >= 0}
    finished.add(PartResult(*place, key.identity, entry, dict(counts), numbers))


def check_driver(driver: int | None) -> None:
    """Raises OrphanedError in a worker whose driver (see `Plan`) is gone."""
    if driver is not None and os.getppid() != driver:
        raise OrphanedError("the process that started the preparation has ended")


def _encode(
    plan: Plan,
    vocabulary: Vocabulary,
    block_filter: BlockFilter,
    key: PartKey,
    split: str,
    number: int,
    items: list[Any],
    threads: int,
) -> tuple[list[bytes], Counter[str]]:
    """Records and counts of a block, filtered and encoded."""
    source, counts = plan.inputs[key.index], Counter[str]()
    items = block_filter.apply(key.index, split, key.part, number, items, counts)
    length, ratio = plan.chunk_lengths[source.objective], plan.filtering.config.pair_max_length_ratio
    prefix = plan.examples.prefix(source.language)
    records, encoded = encode_block(items, source.unit, vocabulary, length, threads, ratio, plan.examples, prefix)
    counts.update(encoded)
    return records, counts


def _threads(source: TextSource, key: PartKey) -> int:
    """Threads for tokenising: ids do not depend on them."""
    return (os.cpu_count() or 1) if source.part_size(key.split, key.part) > _LARGE * PART_BYTES else 1


class _OpenShard:
    """The shard of one split that is being filled; those of a part follow each other."""

    def __init__(self, plan: Plan, key: PartKey, source: TextSource, split: str):
        self.plan, self.key, self.task, self.split = plan, key, source.task, split
        self.number, self.done = -1, True
        self.records: list[bytes] = []
        self.counts = Counter[str]()

    def move_to(self, number: int) -> None:
        """Makes `number` the current shard; finishes the one before."""
        if number == self.number:
            return
        self.close()
        self.number = number
        self.done = self.key.identity is not None and bool(
            self.plan.finished.shard(self.task, self.split, self.key.part, number, self.key.identity)
        )

    def add(self, records: list[bytes], counts: Counter[str]) -> None:
        """Chunks of the next block, and what was counted."""
        self.records += records
        self.counts.update(counts)

    def close(self) -> None:
        """Writes the current shard, unless it is there already."""
        if self.done:
            return
        shard = None
        if self.records:
            file = f"{self.task}/{self.split}-{self.key.part:05d}-{self.number:05d}.array_record"
            shard = write_shard(self.plan.folder, file, self.records)
        self.plan.finished.add(
            ShardResult(self.task, self.split, self.key.part, self.number, self.key.identity, dict(self.counts), shard)
        )
        self.records, self.counts, self.done = [], Counter(), True
