"""Pictures of the study's results: `python -m benchmarks.evidence.plots RESULTS.json --output=DIR`.

    initialisation.svg   held-out loss of the ways to start, by steps and by time
    finetuning.svg       loss on held-out translations, of what was pretrained on, and of none

A line is the mean of the seeds, the band around it their least and greatest.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

from benchmarks.evidence.tables import seconds_a_step
from benchmarks.evidence.variants import COMPARISONS, VARIANTS

_OBJECTIVES = {"span_corruption": "span corruption", "translation_span_corruption": "translation span corruption"}


def curves(runs: dict[str, Any], part: str, name: str) -> dict[int, list[float]]:
    """{step: one value a seed} of a variant; steps that not all seeds have are left out."""
    rows = [row[part][name] for row in runs.values() if name in row[part]]
    steps = set.intersection(*(set(row) for row in rows)) if rows else set()
    return {int(step): [row[step] for row in rows] for step in sorted(steps, key=int)}


def draw(axes: Any, found: dict[int, list[float]], label: str, scale: float = 1.0) -> None:
    """One variant on one plot; x is steps times `scale`."""
    x = [step * scale for step in found]
    (line,) = axes.plot(x, [statistics.fmean(values) for values in found.values()], label=label, marker=".")
    low, high = ([limit(values) for values in found.values()] for limit in (min, max))
    axes.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def initialisation(results: dict[str, Any], path: pathlib.Path) -> None:
    """Objectives in rows; by steps on the left, by time on the right."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6), sharey="row", layout="constrained")
    names = [name for name in next(iter(COMPARISONS.values())) if name in results["runs"]]
    for row, (objective, title) in zip(grid, _OBJECTIVES.items(), strict=True):
        for name in names:
            runs = results["runs"][name]
            found = curves(runs, "pretraining", objective)
            label = VARIANTS[name].title.split(", both")[0]
            draw(row[0], found, label)
            draw(row[1], found, label, seconds_a_step(runs) or 0.0)
        row[0].set_ylabel(f"{title}\nnats a piece of held-out text")
    grid[0][0].legend(fontsize="small")
    grid[1][0].set_xlabel("steps")
    grid[1][1].set_xlabel("seconds of training (one core)")
    _save(figure, path)


def finetuning(results: dict[str, Any], path: pathlib.Path) -> None:
    """How the decoder started on the left, what it was pretrained on, if at all, on the right."""
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    start, learned, whether = COMPARISONS.values()
    for axes, names in zip(plots, (start, (*learned, *whether[1:])), strict=True):
        for name in names:
            if name in results["runs"]:
                draw(axes, curves(results["runs"][name], "finetuning", "loss"), VARIANTS[name].title)
        axes.set_xlabel("steps of fine-tuning")
        axes.legend(fontsize="small")
    plots[0].set_ylabel("nats a piece of held-out translations")
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path, metavar="RESULTS.json")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR")
    flags = parser.parse_args()
    try:
        import matplotlib
    except ModuleNotFoundError:
        sys.exit("pictures are drawn by matplotlib: pip install -c constraints.txt -e '.[evidence]'")
    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "deltalm_jax", "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
        "axes.spines.right": False, "font.size": 9,
    }  # fmt: skip
    results = json.loads(flags.results.read_bytes())
    flags.output.mkdir(parents=True, exist_ok=True)
    initialisation(results, flags.output / "initialisation.svg")
    finetuning(results, flags.output / "finetuning.svg")


if __name__ == "__main__":
    main()
