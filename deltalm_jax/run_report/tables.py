"""The report's tables, as HTML: epochs by task, every value of the configuration, and the values that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape

from deltalm_jax.data.description.wording import percent, title
from deltalm_jax.evaluation.page import html_table
from deltalm_jax.run_report.reading import Run

_DEFAULT = "default"


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Names whose values are not the same in all runs → text for each run, "" where a run does not know the name."""
    names = dict.fromkeys(name for run in runs for name in run.values)
    shown = {name: [_value(run, name) for run in runs] for name in names}
    return {name: values for name, values in shown.items() if len(set(values)) > 1}


def differing(runs: Sequence[Run]) -> str:
    """The table of `differences`."""
    found = differences(runs)
    if not found:
        return '<p class="lead">All values of the configurations are the same.</p>'
    rows = ((escape(name), *(f"<code>{escape(value)}</code>" for value in values)) for name, values in found.items())
    return html_table(("what differs", *(run.name for run in runs)), rows)


def configuration(run: Run) -> str:
    """Every value and where it came from: those that were set, and folded away those that are defaults."""
    if not run.values:
        return '<p class="lead">There is no configuration on record.</p>'
    defaults = [name for name in run.values if run.origins.get(name) == _DEFAULT]
    chosen = [name for name in run.values if name not in set(defaults)]

    def table(names: list[str]) -> str:
        rows = (
            (escape(name), f"<code>{escape(_value(run, name))}</code>", escape(str(run.origins.get(name, ""))))
            for name in names
        )
        return html_table(("name", "value", "from"), rows)

    folded = f"<details><summary>{len(defaults)} defaults</summary>{table(defaults)}</details>" if defaults else ""
    return f"{table(chosen)}{folded}"


def epochs(runs: Sequence[Run], heads: Sequence[str]) -> str:
    """How often each task has been seen so far and will be seen in the whole run; "" if no run says so."""
    tasks = dict.fromkeys(task for run in runs for task in (*run.data, *_seen(run)) if _is_whole(task, run))
    if not tasks:
        return ""
    seen_by_run = [_seen(run) for run in runs]
    numbers = range(len(runs))
    planned = {(number, task): _planned(runs[number], task) for number in numbers for task in tasks}
    seen = {(number, task): seen_by_run[number].get(_task(task), math.nan) for number in numbers for task in tasks}
    finite = [value for value in (*planned.values(), *seen.values()) if math.isfinite(value)]
    most = max(finite, default=0.0) or 1.0
    columns = "".join(
        f"<th>{head}<br>rate</th><th>seen</th><th>in the whole run</th>" if len(runs) > 1 else
        "<th>rate</th><th>epochs so far</th><th>in the whole run</th>"
        for head in heads
    )  # fmt: skip

    def order(task: str) -> tuple[str, float]:
        return _objective(runs, task), -_most(known[number, task] for known in (seen, planned) for number in numbers)

    rows = []
    for task in sorted(tasks, key=order):
        cells = "".join(
            f"<td>{_rate(run, task)}</td>{_bar(seen[number, task], most)}{_bar(planned[number, task], most)}"
            for number, run in enumerate(runs)
        )
        rows.append(
            f'<tr><th scope="row">{escape(_task(task))}</th>{cells}'
            f'<td class="text">{escape(title(_objective(runs, task)))}</td></tr>'
        )
    return (
        '<div class="panel" id="epochs"><h3>Epochs</h3><p class="note">How often each chunk of a task has been seen at the '
        "last validation, and will have been at the end; rate: its share of its objective's examples.</p>"
        f'<div class="scroll tall" tabindex="0"><table><thead><tr><th>task</th>{columns}'
        f'<th style="text-align:left">objective</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></div>'
    )


def _seen(run: Run) -> dict[str, float]:
    return {key.removeprefix("epochs/"): series.last for key, series in run.series.items() if key.startswith("epochs/")}


def _is_whole(task: str, run: Run) -> bool:
    """Whether a name gets a row: data.json may say "objective/task" where metrics.jsonl says "task"."""
    return task in run.data or not any(_task(name) == task for name in run.data)


def _task(name: str) -> str:
    return name.rpartition("/")[2]


def _objective(runs: Sequence[Run], task: str) -> str:
    return next((str(run.data[task].get("objective", "")) for run in runs if task in run.data), "")


def _planned(run: Run, task: str) -> float:
    found = run.data.get(task, {}).get("epochs")
    return float(found) if isinstance(found, int | float) else math.nan


def _rate(run: Run, task: str) -> str:
    found = run.data.get(task, {}).get("rate")
    return percent(float(found)) if isinstance(found, int | float) else ""


def _most(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)


def _bar(value: float, most: float) -> str:
    if not math.isfinite(value):
        return "<td></td>"
    return f'<td class="bar" style="--w:{100 * value / most:.1f}%">{value:.3g}</td>'


def _value(run: Run, name: str) -> str:
    return json.dumps(run.values[name], ensure_ascii=False) if name in run.values else ""
