"""What is finished of a preparation: a record of every shard and of every part, which outlives the processes.

Workers report through these records alone, so results need no way through a runner, and a run that was killed goes on
where its records end. A record is written after what it speaks of is in place; two attempts at the same part write the
same records. A record counts only for the very text that it was made from (`identity`).
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deltalm_jax.data.shards import Shard, write_atomically
from deltalm_jax.paths import is_remote, make_folder, names_below

_PART, _SHARD = "part", "shard"
# Object stores answer slowly and to many at once.
_THREADS = 32


@dataclasses.dataclass(frozen=True)
class PartResult:
    """One part of a task's text after reading.

    Attributes:
      task, split, part: which one.
      identity: of its text, as in `TextSource.identity`.
      entry: what the manifest says of the text.
      counts: of reading.
      shards: how many shards came of it, by the split that they belong to ("train" and "validation" may come of "train").
    """

    task: str
    split: str
    part: int
    identity: str | None
    entry: Mapping[str, Any]
    counts: Mapping[str, int]
    shards: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """One run of blocks of a part after writing: its place, summed counts, and the file (None if no chunk came of it)."""

    task: str
    split: str
    part: int
    number: int
    identity: str | None
    counts: Mapping[str, int]
    shard: Shard | None


@dataclasses.dataclass(frozen=True)
class Finished:
    """The records of one preparation.

    Attributes:
      records: folder of the records, which is there.
      folder: where the shards are.
    """

    records: Path
    folder: Path

    def add(self, result: PartResult | ShardResult) -> None:
        """Puts something on record."""
        path = self.records / _name(result)
        make_folder(path.parent)
        write_atomically(path, json.dumps(dataclasses.asdict(result), ensure_ascii=False))

    def part(self, task: str, split: str, part: int, identity: str | None) -> PartResult | None:
        """A part that is finished: read, and all its shards in place; else None."""
        content = self._load(f"{task}/{_PART}-{split}-{part:05d}.json", identity)
        if content is None:
            return None
        result = PartResult(**content)
        whole = all(
            self.shard(task, target, part, number, identity)
            for target, count in result.shards.items()
            for number in range(count)
        )
        return result if whole else None

    def shard(self, task: str, split: str, part: int, number: int, identity: str | None) -> ShardResult | None:
        """A shard that is finished, and in place with its size; else None."""
        content = self._load(f"{task}/{_SHARD}-{split}-{part:05d}-{number:05d}.json", identity)
        if content is None:
            return None
        result = _shard_result(content)
        if result.shard is not None:
            try:
                if (self.folder / result.shard.file).stat().st_size != result.shard.bytes:
                    return None
            except FileNotFoundError:
                return None
        return result

    def forget(self, task: str, split: str, part: int) -> None:
        """Takes the records of a part away, and of its shards: its text has turned out to be damaged."""
        for name in names_below(self.records / task):
            kind, *place = name.removesuffix(".json").split("-")
            if place and place[1] == f"{part:05d}" and (kind == _SHARD or place[0] == split):
                (self.records / task / name).unlink(missing_ok=True)

    def count(self) -> tuple[int, int]:
        """How many parts and shards are on record."""
        kinds = Counter(name.rsplit("/", 1)[-1].split("-")[0] for name in names_below(self.records))
        return kinds[_PART], kinds[_SHARD]

    def collect(
        self, wanted: Iterable[tuple[str, str, int, str | None]]
    ) -> tuple[list[PartResult], list[ShardResult], list[tuple[str, str, int]]]:
        """The results of parts (task, split, part, identity), in that order; their shards; and which parts lack some."""
        parts: list[PartResult] = []
        shards: list[ShardResult] = []
        missing: list[tuple[str, str, int]] = []

        def load(key: tuple[str, str, int, str | None]) -> tuple[PartResult | None, list[ShardResult]]:
            task, split, part, identity = key
            found = self.part(task, split, part, identity)
            places = [(t, n) for t, count in (found.shards if found else {}).items() for n in range(count)]
            loaded = [self.shard(task, target, part, number, identity) for target, number in places]
            return found, [shard for shard in loaded if shard is not None]

        wanted = list(wanted)
        with ThreadPoolExecutor(_THREADS if is_remote(self.records) else 1) as threads:
            for key, (found, of_part) in zip(wanted, threads.map(load, wanted), strict=True):
                if found is None or len(of_part) != sum(found.shards.values()):
                    missing.append(key[:3])
                else:
                    parts.append(found)
                    shards.extend(of_part)
        return parts, shards, missing

    def _load(self, name: str, identity: str | None) -> dict[str, Any] | None:
        try:
            content = json.loads((self.records / name).read_bytes())
        except FileNotFoundError:
            return None
        return content if content["identity"] == identity else None


def _name(result: PartResult | ShardResult) -> str:
    if isinstance(result, PartResult):
        return f"{result.task}/{_PART}-{result.split}-{result.part:05d}.json"
    return f"{result.task}/{_SHARD}-{result.split}-{result.part:05d}-{result.number:05d}.json"


def _shard_result(content: dict[str, Any]) -> ShardResult:
    return ShardResult(**{**content, "shard": content["shard"] and Shard(**content["shard"])})
