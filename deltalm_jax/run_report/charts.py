"""The charts' form: curves, marks, rows of dots. Their colours come from the page's style sheet, by a trace's run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from deltalm_jax.run_report.events import Event
from deltalm_jax.run_report.reading import Series
from deltalm_jax.run_report.thinning import Curve, thin

# Seven digits are what a float32 has.
_DIGITS = 7
# Most by least: from here on a linear axis would show only the most.
_FAR_APART = 20
# Of an axis and of a value, in d3's language: shares of 1 in percent; learning rates without µ.
_FORMS = {"number": ("", ",.5~g"), "share": (".3~p", ".2%"), "small": (".3~g", ".4~g")}
_HEIGHT, _ROW_HEIGHT = 300, 19
# After as many runs as there are colours, these tell the next round of runs from the first.
COLOURS = 6
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
SIGNS = "●■◆▲"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
      title: of a few words.
      note: what there is to know, a sentence or more; may be empty.
      figure: what plotly draws.
      height: in pixels.
      thinned: lines of a run that a point stands for, at most.
    """

    title: str
    note: str
    figure: go.Figure
    height: int = _HEIGHT
    thinned: int = 1


class Drawing:
    """A chart of curves over steps, to which runs are added one by one.

    Args:
      title: the chart's.
      unit: of the vertical axis.
      logarithmic: whether that axis is, where values lie far apart and above 0.
      form: how its numbers are written, a key of `_FORMS`.
    """

    def __init__(self, title: str, unit: str, *, logarithmic: bool = False, form: str = "number"):
        self._title, self._figure = title, go.Figure()
        tick, self._format = _FORMS[form]
        self._lowest, self._highest = math.inf, -math.inf
        self._thinned, self._not_finite, self._end = 1, 0, 0
        self._logarithmic = logarithmic
        self._curves: list[tuple[str, Series]] = []
        self._figure.update_layout(template="none", **_layout(unit, tick))

    def curve(self, run: int, name: str, series: Series) -> Curve:
        """A measure of every step: a line, and where it had to be thinned, a band from the least to the most."""
        curve = thin(series)
        self._note(curve)
        self._curves.append((name, series))
        steps = curve.steps_P.tolist()
        self._band(run, curve)
        spread = ", %{customdata[0]:.4~g} to %{customdata[1]:.4~g}" if curve.lines > 1 else ""
        self._figure.add_scatter(
            x=steps,
            y=_numbers(curve.means_P),
            customdata=[_numbers(pair) for pair in np.stack([curve.lows_P, curve.highs_P], 1)] if spread else None,
            mode="lines+markers" if len(steps) == 1 else "lines",
            line={"width": 1.4, "dash": _dash(run)},
            hovertemplate=f"{_plain(name)} %{{y:{self._format}}}{spread}<extra></extra>",
            meta={"run": run, "part": "curve"},
        )
        return curve

    def points(self, run: int, name: str, series: Series, style: int = 0) -> None:
        """A measure of some steps: a line with a point for each; `style` tells lines of one run apart."""
        curve = thin(series)
        self._note(curve)
        self._band(run, curve)
        self._figure.add_scatter(
            x=curve.steps_P.tolist(),
            y=_numbers(curve.means_P),
            mode="lines+markers",
            line={"width": 2, "dash": _DASHES[style % len(_DASHES)] if style else _dash(run)},
            marker={"size": 7, "symbol": _SYMBOLS[style % len(_SYMBOLS)], "line": {"width": 1.5}},
            hovertemplate=f"{_plain(name)} %{{y:{self._format}}}<extra></extra>",
            meta={"run": run, "part": "points"},
        )

    def level(self, run: int, name: str, series: Series) -> None:
        """What is to be compared with: a dotted line."""
        curve = thin(series)
        self._figure.add_scatter(
            x=curve.steps_P.tolist(),
            y=_numbers(curve.means_P),
            mode="lines" if len(curve.steps_P) > 1 else "markers",
            line={"width": 1.6, "dash": "dot"},
            marker={"symbol": "line-ew-open", "size": 16},
            hovertemplate=f"{_plain(name)} %{{y:{self._format}}}<extra></extra>",
            meta={"run": run, "part": "level"},
        )

    def marks(self, run: int, events: Sequence[Event], curve: Curve) -> None:
        """What happened, on the curve where it did; a trace for each kind."""
        for kind in dict.fromkeys(event.kind for event in events):
            chosen = [event for event in events if event.kind == kind]
            self._figure.add_scatter(
                x=[event.step for event in chosen],
                y=[_number(_height_at(curve, event.step)) for event in chosen],
                text=[_plain(event.text) for event in chosen],
                mode="markers",
                marker={"size": 10, "symbol": kind.symbol, "line": {"width": 1.5}},
                hovertemplate="%{text}<extra></extra>",
                meta={"run": run, "part": "mark"},
            )

    def chart(self, note: str = "") -> Chart:
        """The chart, with notes on what was done to draw it."""
        if self._logarithmic and self._lowest > 0 and self._highest > _FAR_APART * self._lowest:
            self._figure.update_yaxes(type="log", dtick=1 if self._highest > 100 * self._lowest else "D2")
            note = f"{note} Logarithmic scale.".strip()
        for at, (name, series) in enumerate(self._curves):
            # Of equal curves only the one that is drawn last is seen.
            if same := [other for other, before in self._curves[:at] if _equal(series, before)]:
                note += f" {name} is the same as {same[0]}."
        if self._not_finite:
            note += f" Not drawn: {self._not_finite:,} value{'s' if self._not_finite > 1 else ''} not finite."
        if self._end:
            self._figure.update_xaxes(range=[0, 1.02 * self._end])
        if self._lowest >= 0:
            self._figure.update_yaxes(rangemode="nonnegative")
        return Chart(self._title, note.strip(), self._figure, thinned=self._thinned)

    def _band(self, run: int, curve: Curve) -> None:
        """From the least to the most of each stretch, if there are stretches."""
        if curve.lines == 1:
            return
        # Where a stretch has no value the line has a gap; a band with one would be filled wrongly.
        known_P = np.isfinite(curve.lows_P)
        for values_P, fill in ((curve.lows_P, None), (curve.highs_P, "tonexty")):
            self._figure.add_scatter(
                x=curve.steps_P[known_P].tolist(),
                y=_numbers(values_P[known_P]),
                mode="lines",
                line={"width": 0.8},
                fill=fill,
                hoverinfo="skip",
                meta={"run": run, "part": "band"},
            )

    def _note(self, curve: Curve) -> None:
        self._thinned = max(self._thinned, curve.lines)
        self._not_finite += len(curve.not_finite)
        self._end = max(self._end, int(curve.steps_P.max()))
        if np.isfinite(curve.lows_P).any():
            self._lowest = min(self._lowest, float(np.nanmin(curve.lows_P)))
            self._highest = max(self._highest, float(np.nanmax(curve.highs_P)))


def dots(
    title: str, note: str, unit: str, rows: Sequence[str], runs: Sequence[tuple[int, str, Sequence[float]]]
) -> Chart:
    """A row for each group, a dot in it for each run.

    Args:
      title, note: the chart's.
      unit: of the horizontal axis.
      rows: names, from the top.
      runs: number of the run, its name, and a value for each row; nan leaves the row empty.
    """
    figure = go.Figure()
    for run, name, values in runs:
        figure.add_scatter(
            x=[_number(value) for value in values],
            y=list(map(_plain, rows)),
            mode="markers",
            marker={"size": 9, "symbol": _SYMBOLS[run % len(_SYMBOLS)], "line": {"width": 1}},
            hovertemplate=f"{_plain(name)} %{{x:.4~f}}<extra></extra>",
            meta={"run": run, "part": "dots"},
        )
    height = _ROW_HEIGHT * len(rows) + 60
    figure.update_layout(template="none", **_layout("", height=height))
    figure.update_layout(hovermode="y unified", margin={"l": 64})
    figure.update_xaxes(title={"text": unit}, tickformat="", showgrid=True)
    figure.update_yaxes(autorange="reversed", type="category", dtick=1)
    return Chart(title, note, figure, height)


def _layout(unit: str, tick: str = "", height: int = _HEIGHT) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "fixedrange": False}
    return {
        "height": height,
        "margin": {"l": 52, "r": 10, "t": 8, "b": 38},
        "showlegend": False,
        "hovermode": "x unified",
        "dragmode": "zoom",
        "xaxis": {"title": {"text": "step"}, "tickformat": "~s", "hoverformat": ",d", "nticks": 7, **axis},
        "yaxis": {"title": {"text": unit}, "tickformat": tick, **axis},
    }


def _equal(one: Series, other: Series) -> bool:
    return np.array_equal(one.steps_N, other.steps_N) and np.array_equal(one.values_N, other.values_N, equal_nan=True)


def _dash(run: int) -> str:
    return _DASHES[run // COLOURS % len(_DASHES)]


def _height_at(curve: Curve, step: int) -> float:
    """The curve's height at a step: that of the nearest point before it, or after it, that has one."""
    places = np.flatnonzero(np.isfinite(curve.means_P))
    if not places.size:
        return math.nan
    at = np.searchsorted(curve.steps_P[places], step)
    return float(curve.means_P[places[min(int(at), places.size - 1)]])


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _plain(text: str) -> str:
    """Text as plotly shows it: it takes some HTML, and %{…} for a variable, so these are taken apart."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%\u200b{")
