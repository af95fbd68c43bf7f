"""Which charts a report has, in which order: from the losses to the machine, and then all that is left."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from deltalm_jax.data.description.wording import title
from deltalm_jax.run_report.charts import SIGNS, Chart, Drawing, dots
from deltalm_jax.run_report.events import Event, some_of
from deltalm_jax.run_report.reading import Run, Series

# Groups that are drawn over time; of more, the last validation.
_FEW_GROUPS = 4


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a heading, and what stands under it."""

    anchor: str
    heading: str
    charts: list[Chart]
    lead: str = ""


class Sections:
    """The sections of some runs.

    Args:
      runs: in the order of their colours.
      events: of each.
    """

    def __init__(self, runs: Sequence[Run], events: Sequence[Sequence[Event]]):
        self._runs = list(runs)
        self._marked = [some_of(of_run) for of_run in events]
        self._used: set[str] = set()
        keys = dict.fromkeys(key for run in runs for key in run.series)
        self._keys = list(keys)
        self._objectives = [key.removeprefix("loss/") for key in keys if key.startswith("loss/")]
        for key in keys:
            parts = key.split("/")
            if parts[0] == "eval" and len(parts) == 3 and parts[1] not in self._objectives:
                self._objectives.append(parts[1])

    def all(self) -> list[Section]:
        """Those that have something to show, in order."""
        made = [
            Section("loss", "Loss", self._losses(), "In nats per target."),
            Section("text", "Beside a unigram predictor", self._text(), _TEXT),
            Section("groups", "By groups of languages", self._groups(), "Validation, in nats per piece of text."),
            Section("course", "Learning rate and gradient", self._course()),
            Section("speed", "Speed", *self._speed()),
            Section("data", "Data", self._data()),
            Section("memory", "Memory", self._plain(lambda key: "memory" in key)),
            # Last: all that no other section has taken.
            Section("more", "More", self._plain(lambda key: key not in self._used and not _is_elsewhere(key))),
        ]
        return [section for section in made if section.charts or (section.lead and section.anchor == "speed")]

    def _having(self, key: str) -> list[tuple[int, Run, Series]]:
        self._used.add(key)
        return [(number, run, run.series[key]) for number, run in enumerate(self._runs) if key in run.series]

    def _losses(self) -> list[Chart]:
        charts = []
        only = self._objectives[0] if len(self._objectives) == 1 else None
        if only is None and (all_runs := self._having("loss")):
            drawing = Drawing("All objectives together", "nats per target")
            for number, run, series in all_runs:
                drawing.marks(number, self._marked[number], drawing.curve(number, run.name, series))
            charts.append(drawing.chart("What is minimised: over the targets of all objectives."))
        for objective in self._objectives:
            drawing = Drawing(title(objective).capitalize(), "nats per target")
            plain = f"nll/{objective}"
            for number, run in enumerate(self._runs):
                key = plain if plain in run.series else f"loss/{objective}"
                if key not in run.series and only:
                    key = "loss"
                self._used |= {key, f"loss/{objective}"} | ({"loss"} if only else set())
                if key in run.series:
                    curve = drawing.curve(number, f"{run.name}, training", run.series[key])
                    if only:
                        drawing.marks(number, self._marked[number], curve)
            for number, run, series in self._having(f"eval/{objective}/loss"):
                drawing.points(number, f"{run.name}, validation", series)
            smoothed = any(plain in run.series for run in self._runs)
            self._used.add(plain)
            charts.append(drawing.chart("Without label smoothing and z-loss, as in validation." if smoothed else ""))
        return charts

    def _text(self) -> list[Chart]:
        charts = []
        for objective in self._objectives:
            text, unigram = (self._having(f"eval/{objective}/{name}_loss") for name in ("text", "unigram"))
            if text or unigram:
                drawing = Drawing(title(objective).capitalize(), "nats per piece of text")
                for number, run, series in unigram:
                    drawing.level(number, f"{run.name}, unigram predictor", series)
                for number, run, series in text:
                    drawing.points(number, run.name, series)
                charts.append(drawing.chart())
        return charts

    def _groups(self) -> list[Chart]:
        """For each objective and way of grouping: over time where groups are few, else the last validation of each."""
        kinds: dict[tuple[str, str], dict[str, str]] = {}
        for key in self._keys:
            parts = key.split("/")
            if parts[0] == "eval" and len(parts) == 5 and parts[4] == "text_loss":
                kinds.setdefault((parts[1], parts[2]), {})[parts[3]] = key
        charts = []
        # Those over time first: they are of one height.
        for (objective, kind), groups in sorted(kinds.items(), key=lambda item: len(item[1]) > _FEW_GROUPS):
            name = f"{title(objective).capitalize()}, by {kind.replace('_', ' ')}"
            if len(groups) <= _FEW_GROUPS:
                drawing = Drawing(name, "nats per piece of text")
                for style, (group, key) in enumerate(groups.items()):
                    for number, run, series in self._having(key):
                        drawing.points(number, f"{run.name}, {group}", series, style)
                signs = "  ".join(f"{sign} {group}" for sign, group in zip(SIGNS, groups, strict=False))
                charts.append(drawing.chart(signs))
            else:
                charts.append(self._last_of_groups(name, groups))
        return charts

    def _last_of_groups(self, name: str, groups: dict[str, str]) -> Chart:
        def last(run: Run, group: str) -> float:
            return run.series[groups[group]].last if groups[group] in run.series else math.nan

        def order(group: str) -> float:
            values = [value for value in (last(run, group) for run in self._runs) if math.isfinite(value)]
            return values[0] if values else math.inf

        self._used |= {*groups.values()}
        rows = sorted(groups, key=order)
        shown = [
            (number, run.name, [last(run, group) for group in rows])
            for number, run in enumerate(self._runs)
            if any(groups[group] in run.series for group in rows)
        ]
        return dots(name, "The last validation.", "nats per piece of text", rows, shown)

    def _course(self) -> list[Chart]:
        charts = self._every_step("learning_rate", Drawing("Learning rate", "", form="small"))
        if runs := self._having("grad_norm"):
            drawing = Drawing("Norm of the gradient", "", logarithmic=True)
            for number, run, series in runs:
                drawing.marks(number, self._marked[number], drawing.curve(number, run.name, series))
            charts.append(drawing.chart("Before clipping."))
        return charts

    def _speed(self) -> tuple[list[Chart], str]:
        charts = []
        for key, drawing, note in (
            ("tokens_per_second", Drawing("Tokens a second", "", logarithmic=True), "Inputs and targets, no padding."),
            ("target_tokens_per_second", Drawing("Target tokens a second", "", logarithmic=True), "No padding."),
            ("mfu", Drawing("MFU", "", form="share"), "Model FLOPs utilisation of the devices' peak."),
            ("step_seconds", Drawing("Seconds a step", "", logarithmic=True), ""),
            ("data_wait_fraction", Drawing("Waiting for data", "", form="share"), "Share of the step."),
        ):
            charts += self._every_step(key, drawing, note)
        reasons: dict[str, list[str]] = {}
        for run in self._runs:
            if "mfu" not in run.series and "mfu_reason" in run.texts:
                reasons.setdefault(run.texts["mfu_reason"], []).append(run.name)
        words = "; ".join(
            reason if len(names) == len(self._runs) else f"{', '.join(names)}: {reason}"
            for reason, names in reasons.items()
        )
        return charts, f"MFU is not known: {words}." if words else ""

    def _data(self) -> list[Chart]:
        return self._every_step(
            "padding_share", Drawing("Padding", "", form="share"), "Share of the positions of a batch."
        )

    def _every_step(self, key: str, drawing: Drawing, note: str = "") -> list[Chart]:
        runs = self._having(key)
        for number, run, series in runs:
            drawing.curve(number, run.name, series)
        return [drawing.chart(note)] if runs else []

    def _plain(self, wanted: Callable[[str], bool]) -> list[Chart]:
        """A chart for each key that is wanted, under its own name."""
        charts = []
        for key in filter(wanted, self._keys):
            drawing = Drawing(key, "", logarithmic=True)
            for number, run, series in self._having(key):
                # What is measured at some steps has a point for each.
                sparse = len(series.steps_N) < 0.5 * len(run.series["loss"].steps_N) if "loss" in run.series else False
                (drawing.points if sparse else drawing.curve)(number, run.name, series)
            charts.append(drawing.chart())
        return charts


_TEXT = (
    "Validation on targets that are text, and a predictor that knows only how often each piece occurs: what a model must "
    "beat before it has learned anything."
)


def _is_elsewhere(key: str) -> bool:
    """Whether a key is shown otherwise: epochs in a table, skipped steps as marks; a group's loss by its text alone."""
    return (
        key.startswith("epochs/")
        or key in ("skipped", "skipped_in_a_row")
        or (key.startswith("eval/") and key.count("/") == 4)
    )


def median(series: Series) -> float:
    """Of the finite values; nan if there is none."""
    finite = series.values_N[np.isfinite(series.values_N)]
    return float(np.median(finite)) if finite.size else math.nan
