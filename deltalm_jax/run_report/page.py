"""The report as one HTML page: plotly.js stands in it once, and nothing is loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from deltalm_jax.data.description.page import document
from deltalm_jax.evaluation.page import html_table
from deltalm_jax.run_report import tables
from deltalm_jax.run_report.charts import COLOURS, Chart
from deltalm_jax.run_report.events import MOST_MARKS, Event, Kind, events_of
from deltalm_jax.run_report.overview import FIRST, cards, overview
from deltalm_jax.run_report.reading import Run
from deltalm_jax.run_report.sections import Section, Sections

_SCRIPT = Path(__file__).with_name("report.js")


def as_html(runs: Sequence[Run], written: str) -> str:
    """The page.

    Args:
      runs: in the order of their colours.
      written: when, for people.
    """
    heads = [_head(number, run) for number, run in enumerate(runs)]
    events = [events_of(run) for run in runs]
    facts = overview(runs, events)
    first = {name: values for name, values in facts.items() if name.startswith(FIRST)}
    rest = {name: values for name, values in facts.items() if len(runs) == 1 or name not in first}
    sections = Sections(runs, events).all()
    epochs = tables.epochs(runs, heads)
    if epochs and not any(section.anchor == "data" for section in sections):
        sections.append(Section("data", "Data", []))
    name = escape(", ".join(run.name for run in runs))
    charts: list[Chart] = []
    body = "".join(_section(section, charts, epochs if section.anchor == "data" else "") for section in sections)
    settings = _configuration(runs, heads)
    anchors = [*((section.anchor, section.heading) for section in sections), ("configuration", "Configuration")]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading in anchors)
    return document(
        name,
        f'<header class="top"><h1>{name}</h1><p class="soft">Written {escape(written)}</p>'
        f"{cards(runs[0], facts) if len(runs) == 1 else ''}{_notes(runs, events)}</header>\n"
        f"<main>\n{_overview(runs, first) if len(runs) > 1 else ''}<nav><span>{links}</span></nav>\n"
        f'<noscript><p class="warning">The charts are drawn by JavaScript, which is switched off here.</p></noscript>\n'
        f"{_legend(runs, events) if charts else ''}{_thinned(charts)}{body}"
        f'<section id="about"><h2>{"The runs" if len(runs) > 1 else "The run"}</h2>{_overview(runs, rest)}</section>\n'
        f"{settings}</main>\n"
        "<footer>Made by <code>python -m deltalm_jax.report</code>. Drag over a chart to look closer; a double click goes "
        "back.</footer>\n"
        f"<script>{_inside_script(get_plotlyjs())}</script>\n"
        f'<script type="application/json" id="charts">{_figures(charts)}</script>\n'
        f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script>\n",
    )


def _section(section: Section, charts: list[Chart], more: str) -> str:
    """HTML with a place for each chart; the charts are added to `charts`."""
    parts = []
    for chart in section.charts:
        note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
        parts.append(
            f'<figure class="panel chart"><h3>{escape(chart.title)}</h3>{note}'
            f'<div class="plot" id="chart-{len(charts)}" role="img" aria-label="{escape(chart.title, quote=True)}" '
            f'style="height:{chart.height}px"></div></figure>\n'
        )
        charts.append(chart)
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else '<p class="lead"></p>'
    grid = f'<div class="charts">{"".join(parts)}</div>' if parts else ""
    return f'<section id="{section.anchor}"><h2>{escape(section.heading)}</h2>{lead}{grid}{more}</section>\n'


def _figures(charts: Sequence[Chart]) -> str:
    figures = [chart.figure.to_plotly_json() for chart in charts]
    return _inside_script(json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def _inside_script(text: str) -> str:
    """Text that may stand in a script element: none of it ends one, or begins one in a comment."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _head(number: int, run: Run) -> str:
    return f'<i class="run r{number % COLOURS}"></i>{escape(run.name)}'


def _legend(runs: Sequence[Run], events: Sequence[Sequence[Event]]) -> str:
    """Colours of the runs, which also hide and show them, and signs of what happened to them."""
    kinds = {event.kind for of_run in events for event in of_run}
    signs = "".join(f"<span>{kind.sign} {kind.words}</span>" for kind in Kind if kind in kinds)
    shown = ""
    if len(runs) > 1:
        shown = "".join(
            f'<label><input type="checkbox" data-run="{number}" checked>{_head(number, run)}</label>'
            for number, run in enumerate(runs)
        )
    lines = "<span>— training</span><span>—●— validation</span><span>··· unigram predictor</span>"
    return f'<div class="key">{shown}{lines}{signs}</div>\n'


def _thinned(charts: Sequence[Chart]) -> str:
    most = max((chart.thinned for chart in charts), default=1)
    if most == 1:
        return ""
    return (
        f'<p class="note" style="margin-top:10px">In the charts a point stands for up to {most:,} lines of a run: their '
        "mean, in a band that goes from the least to the most of them.</p>\n"
    )


def _notes(runs: Sequence[Run], events: Sequence[Sequence[Event]]) -> str:
    notes = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    for run, of_run in zip(runs, events, strict=True):
        for kind in Kind:
            if (count := sum(event.kind is kind for event in of_run)) > MOST_MARKS:
                notes.append(f"{run.name}: {kind.words}: {count:,} in all, of which some are marked")
    if not notes:
        return ""
    return f'<ul class="warning">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def _overview(runs: Sequence[Run], facts: dict[str, list[str]]) -> str:
    rows = [(escape(name), *map(escape, values)) for name, values in facts.items()]
    if len(runs) > 1:
        rows.insert(0, ("", *(f'<i class="run r{number % COLOURS}"></i>' for number in range(len(runs)))))
    return f'<div class="values">{html_table(("", *(run.name for run in runs)), rows)}</div>'


def _configuration(runs: Sequence[Run], heads: Sequence[str]) -> str:
    several = len(runs) > 1
    parts = [tables.differing(runs)] if several else []
    for head, run in zip(heads, runs, strict=True):
        inside = tables.configuration(run)
        parts.append(f"<details><summary>{head}: all values</summary>{inside}</details>" if several else inside)
    return f'<section id="configuration" class="values"><h2>Configuration</h2>{"".join(parts)}</section>\n'
