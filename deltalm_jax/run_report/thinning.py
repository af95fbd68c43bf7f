"""Long curves made short enough to draw: a mean for each stretch of steps, and the least and the most that occurred in it."""

from __future__ import annotations

import dataclasses

import numpy as np

from deltalm_jax.run_report.reading import Series

# About as many as a chart is wide in pixels: a stretch that leapt is then no thinner than a line.
MAX_POINTS = 500


@dataclasses.dataclass(frozen=True)
class Curve:
    """A series of at most `MAX_POINTS` points.

    Attributes:
      steps_P: the last step of each stretch.
      means_P: the mean of its finite values; nan where there is none.
      lows_P, highs_P: the least and the most of them: no spike is lost, be it of one step.
      lines: lines of the file to a point, at most; 1 if nothing was thinned.
      not_finite: steps whose value is nan or infinite, all of them.
    """

    steps_P: np.ndarray
    means_P: np.ndarray
    lows_P: np.ndarray
    highs_P: np.ndarray
    lines: int
    not_finite: np.ndarray


def thin(series: Series, most: int = MAX_POINTS) -> Curve:
    """Stretches of equally many lines, as few lines as give no more than `most` points. Legend: N lines, P points."""
    steps_N, values_N = series.steps_N, series.values_N
    lines = -(-len(steps_N) // most)
    starts_P = np.arange(0, len(steps_N), lines)
    finite_N = np.isfinite(values_N)
    counts_P = np.add.reduceat(finite_N, starts_P, dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means_P = np.add.reduceat(np.where(finite_N, values_N, 0.0), starts_P) / counts_P
    lows_P = np.minimum.reduceat(np.where(finite_N, values_N, np.inf), starts_P)
    highs_P = np.maximum.reduceat(np.where(finite_N, values_N, -np.inf), starts_P)
    ends_P = np.minimum(starts_P + lines, len(steps_N)) - 1
    empty_P = counts_P == 0
    return Curve(
        steps_N[ends_P],
        means_P,
        np.where(empty_P, np.nan, lows_P),
        np.where(empty_P, np.nan, highs_P),
        lines,
        steps_N[~finite_N],
    )
