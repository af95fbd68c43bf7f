"""Sources of all lengths in batches of few shapes, for every shape is a program to compile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from deltalm_jax.fields import check_types


@dataclasses.dataclass(frozen=True)
class Batching:
    """How sources are put together. A source's result does not depend on it, short of rounding.

    Attributes:
      lengths: source lengths of the batches, ascending; a source goes where it just fits. Those above the model's own
        limit are left out, and that limit itself is added.
      tokens: places for source tokens in a batch: a batch of length 64 has `tokens` // 64 rows, at least one.
      shrink: whether a length with fewer sources than rows gets no more rows than the next power of two. Costs less
        where there are few sources; the number of rows then depends on how many there are.

    Raises:
      TypeError: a field has another type than declared.
      ValueError: a field is out of range.
    """

    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    tokens: int = 2048
    shrink: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if not self.lengths or self.lengths[0] < 1 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"Batching.lengths must be positive and ascend, found {self.lengths}")
        if self.tokens < 1:
            raise ValueError(f"Batching.tokens must be at least 1, found {self.tokens}")


class Batch(NamedTuple):
    """Which sources are decoded together, and the shape of the batch: what is not filled is padding."""

    length: int
    rows: int
    sources: tuple[int, ...]


def bucket_lengths(batching: Batching, longest: int) -> list[int]:
    """Lengths of batches for a model of so many source positions."""
    return [*(length for length in batching.lengths if length < longest), longest]


def plan_batches(lengths: Sequence[int], batching: Batching, longest: int, multiple_of: int = 1) -> list[Batch]:
    """Puts every source into one batch; those of a length are together, shorter ones first.

    Args:
      lengths: tokens of each source, at most `longest`.
      batching: how.
      longest: most tokens of a source.
      multiple_of: each number of rows is one of this (the devices that share a batch).

    Returns:
      Batches, each shape at most once for each of `bucket_lengths`.
    """
    members: dict[int, list[int]] = {bucket: [] for bucket in bucket_lengths(batching, longest)}
    for source in sorted(range(len(lengths)), key=lambda source: (lengths[source], source)):
        members[next(bucket for bucket in members if lengths[source] <= bucket)].append(source)
    batches = []
    for bucket, sources in members.items():
        rows = max(1, batching.tokens // bucket)
        if batching.shrink and sources:
            rows = min(rows, 1 << (len(sources) - 1).bit_length())
        rows = -(-rows // multiple_of) * multiple_of
        batches += [Batch(bucket, rows, tuple(sources[i : i + rows])) for i in range(0, len(sources), rows)]
    return batches
