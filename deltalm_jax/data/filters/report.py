"""What filters left out of each task, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from deltalm_jax.data.chunks import PreparedTask

_REASONS_SHOWN = 3


def filter_table(tasks: Sequence[PreparedTask], split: str = "train") -> Table:
    """Each task before and after: documents or pairs, and the share of characters dropped, in all and by the main reasons."""
    table = Table(title="before and after the filters", box=None, title_justify="left")
    table.add_column("task", no_wrap=True)
    for column in ("before", "after", "dropped"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("most characters by")
    for task in tasks:
        if split not in task.splits:
            continue
        part = task.splits[split]
        if part.units_before is None or part.characters_before is None:
            continue
        whole = max(part.characters_before, 1)
        reasons = Counter(part.dropped_characters).most_common(_REASONS_SHOWN)
        shown = [f"{name.removeprefix('filter_')} {_percent(count / whole)}" for name, count in reasons if count > 0]
        share = _percent(sum(part.dropped_characters.values()) / whole)
        table.add_row(task.name, f"{part.units_before:,}", f"{part.units:,}", share, "\n".join(shown))
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
