"""Results of the study as tables in Markdown: means and spreads over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.evidence.variants import COMPARISONS, VARIANTS


def last(curve: dict[str, float] | None) -> float | None:
    """The value at the last step of a curve."""
    return curve[max(curve, key=int)] if curve else None


def mean_score(row: dict[str, Any], metric: str) -> float | None:
    """Of all directions of a run."""
    return statistics.fmean(score[metric] for score in row["scores"].values()) if row["scores"] else None


# Column → the number of a run, None where it has none.
COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "held-out text, span corruption": lambda row: last(row["pretraining"].get("span_corruption")),
    "held-out pairs, translation span corruption": lambda row: last(
        row["pretraining"].get("translation_span_corruption")
    ),
    "translation after fine-tuning": lambda row: last(row["finetuning"].get("loss")),
    "chrF++": lambda row: mean_score(row, "chrf++"),
    "BLEU": lambda row: mean_score(row, "bleu"),
}


def seconds_a_step(runs: dict[str, Any]) -> float | None:
    """Of pretraining, the median of the seed that was disturbed least; None without pretraining."""
    return min((row["step_seconds"] for row in runs.values() if row["step_seconds"]), default=None)


def mean_and_spread(values: list[float | None]) -> str:
    """ "mean ± standard deviation" of the seeds, the mean alone of one, "–" of none."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 2 if statistics.fmean(known) < 20 else 1
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def print_tables(results: dict[str, Any]) -> None:
    """A table for each question that has at least two of its variants."""
    for title, names in COMPARISONS.items():
        there = [name for name in names if name in results["runs"]]
        if len(there) < 2:
            continue
        cells = {}
        for heading, column in COLUMNS.items():
            found = [mean_and_spread([column(row) for row in results["runs"][name].values()]) for name in there]
            if set(found) != {"–"}:
                cells[heading] = found
        times = [seconds_a_step(results["runs"][name]) for name in there]
        cells["seconds a step"] = ["–" if time is None else f"{time:.2f}" for time in times]
        print(f"\n{title}\n\n| | {' | '.join(cells)} |\n" + "|---" * (len(cells) + 1) + "|")
        for name, row in zip(there, zip(*cells.values(), strict=True), strict=True):
            print(f"| {VARIANTS[name].title} | {' | '.join(row)} |")
