"""Which batch of the stream a step takes: the next one, but for batches that are left out.

Batch `i` of the stream is a function of (seed, i) alone. A run takes them in order; what it leaves out, because the loss
leapt there, or because the configuration says so, is a list of windows. Windows and step together say all there is to say
of a run's place in its data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class DataOrder:
    """Batches left out: windows (first, one past the last), ascending and apart from each other."""

    windows: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, windows: Mapping[Any, int]) -> DataOrder:
        """From {first: one past the last}, as in `TrainConfig.skipped_data` and in records (where keys are text).

        Raises:
          ValueError: a window is empty or starts before 0.
        """
        order = cls()
        for first, end in sorted((int(first), int(end)) for first, end in windows.items()):
            order = order.without(first, end)
        return order

    def without(self, first: int, end: int) -> DataOrder:
        """The order that also leaves out batches `first` to `end` - 1; windows that touch become one."""
        if not 0 <= first < end:
            raise ValueError(
                f"a window of batches goes from a first (0 or more) to a later end, found {first} to {end}"
            )
        merged: list[tuple[int, int]] = []
        for window in sorted([*self.windows, (first, end)]):
            if merged and window[0] <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], window[1]))
            else:
                merged.append(window)
        return DataOrder(tuple(merged))

    def batch_of(self, step: int) -> int:
        """The batch that the update after `step` updates takes; both count from 0."""
        batch = step
        for first, end in self.windows:
            if batch >= first:
                batch += end - first
        return batch

    def as_json(self) -> dict[str, int]:
        """What `of` takes."""
        return {str(first): end for first, end in self.windows}
