"""What runs are called when several stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalm_jax.paths import absolute
from deltalm_jax.run_report.reading import ReportError
from deltalm_jax.training.checkpoint_record import printable


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: the end of its path, from where on no two are the same.

    Raises:
      ReportError: a folder is given twice.
    """
    places = [absolute(folder) for folder in folders]
    for at, place in enumerate(places):
        if place in places[:at]:
            raise ReportError(f"{printable(folders[at])} is given twice")
    parts = [[part for part in place.parts if part.strip("/")] or [str(place)] for place in places]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return [printable(name) for name in names]
    return [printable(place) for place in places]
