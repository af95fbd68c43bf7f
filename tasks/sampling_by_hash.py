"""A part of a data set that is the same on every machine: decided for each pair by the hash of its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import xxhash

Pair = tuple[str, str]


def sample(pairs: Iterator[Pair], share: float, counts: Counter[str]) -> Iterator[Pair]:
    """About a share of pairs: the same ones whatever their order, and equal pairs together.

    Args:
      pairs: texts.
      share: from 0 to 1; 1 and more: all.
      counts: grows by "over_the_limit" for each that is left out.
    """
    for first, second in pairs:
        if share >= 1 or xxhash.xxh3_64(f"{first}\t{second}".encode()).intdigest() < share * 2**64:
            yield first, second
        else:
            counts["over_the_limit"] += 1
