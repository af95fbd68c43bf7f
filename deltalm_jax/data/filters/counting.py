"""How the counts of filters travel: one `Counter` with everything, as a block's counts go from stage to stage.

before/units, before/characters     what the readers gave: documents or pairs, and the characters in them
filter_NAME                         paragraphs, documents or pairs dropped (or texts changed) by a field of `FilterConfig`
characters/filter_NAME              the characters in those (or removed from those)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BEFORE_UNITS = "before/units"
BEFORE_CHARACTERS = "before/characters"
EMPTIED = "filter_emptied_documents"
# Filters that change texts, and drop none.
CHANGING = ("filter_remove_format_characters", "filter_normalize")

_CHARACTERS = "characters/"


def count_before(items: Sequence[Sequence[str]], counts: Counter[str]) -> None:
    """Counts documents (lists of paragraphs) or pairs as they came."""
    counts[BEFORE_UNITS] += len(items)
    counts[BEFORE_CHARACTERS] += sum(len(text) for item in items for text in item)


def count_dropped(field: str, number: int, characters: int, counts: Counter[str]) -> None:
    """Counts what a field of `FilterConfig` dropped or changed; nothing where it is nothing."""
    if number:
        counts[f"filter_{field}"] += number
        counts[f"{_CHARACTERS}filter_{field}"] += characters


class Sieve:
    """Which of N texts are still there while filters go over them, each counted by the first that drops it.

    Attributes:
      kept_N: bool.
    """

    def __init__(self, characters_N: np.ndarray, counts: Counter[str]):
        """All are there.

        Args:
          characters_N: int, characters of each, for the counts.
          counts: changed by `drop`.
        """
        self.kept_N = np.ones(len(characters_N), bool)
        self._characters_N, self._counts = characters_N, counts

    def drop(self, field: str, bad_N: np.ndarray) -> None:
        """Drops those that a field of `FilterConfig` refuses (bool), if they are still there."""
        dropped_N = self.kept_N & bad_N
        count_dropped(field, int(dropped_N.sum()), int(self._characters_N[dropped_N].sum()), self._counts)
        self.kept_N &= ~dropped_N

    def keep_from(self, items: Sequence[Any]) -> list[Any]:
        """Those of N items that are still there."""
        return [item for item, kept in zip(items, self.kept_N.tolist(), strict=True) if kept]


def manifest_entries(counts: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest says of a split beside the numbers dropped: "before" and "dropped_characters"."""
    characters = {k.removeprefix(_CHARACTERS): n for k, n in sorted(counts.items()) if k.startswith(_CHARACTERS)}
    return {
        "before": {"units": counts.get(BEFORE_UNITS, 0), "characters": counts.get(BEFORE_CHARACTERS, 0)},
        "dropped_characters": characters,
    }


def is_reason(name: str) -> bool:
    """Whether a count tells of things dropped or changed, rather than of characters or of what came."""
    return not name.startswith(("before/", _CHARACTERS))
