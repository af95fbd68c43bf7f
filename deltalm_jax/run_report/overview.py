"""The head of the page: of each run what a person asks first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from deltalm_jax.data.description.wording import percent, short, title
from deltalm_jax.run_report.events import Event, Kind
from deltalm_jax.run_report.reading import Run
from deltalm_jax.run_report.sections import median

# How the names of those facts begin that stand above all where runs are compared.
FIRST = ("steps", "last loss", "best validation", "parameters", "tokens a second", "started from")


def facts(run: Run, events: Sequence[Event]) -> dict[str, str]:
    """What there is to say of a run and its events, by its name; what is not known is left out. Text, not HTML."""
    found: dict[str, str] = {}
    loss, about = run.series.get("loss"), run.record.get("about", {})
    planned = run.values.get("TrainConfig.steps")
    if loss:
        found["steps"] = f"{int(loss.steps_N[-1]):,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
        found["last loss"] = _loss(loss.last)
    for objective, (step, value, unigram) in best_validations(run).items():
        beside = f", {percent(abs(1 - value / unigram))} {_side(value, unigram)} unigram" if unigram else ""
        found[f"best validation, {title(objective)}"] = f"{_loss(value)} on text at step {step:,}{beside}"
    if isinstance(best := about.get("best"), dict):
        found["best checkpoint"] = f"step {best['step']:,}, {best['by']} {best['value']:.4g}"
    if parameters := count_parameters(run.record):
        found["parameters"] = f"{parameters:,}"
    if "tokens_per_second" in run.series:
        found["tokens a second, median"] = f"{median(run.series['tokens_per_second']):,.0f}"
    if "mfu" in run.series:
        found["MFU, median"] = percent(median(run.series["mfu"]))
    elif "mfu_reason" in run.texts:
        found["MFU"] = run.texts["mfu_reason"]
    if seconds := run.series.get("step_seconds"):
        found["time in steps"] = _duration(float(np.nansum(seconds.values_N[np.isfinite(seconds.values_N)])))
        if waited := run.series.get("data_wait_fraction"):
            shared = min(len(waited.values_N), len(seconds.values_N))
            share = np.nansum(waited.values_N[:shared] * seconds.values_N[:shared]) / np.nansum(
                seconds.values_N[:shared]
            )
            found["of it waiting for data"] = percent(float(share))
    for kind, what in (
        (Kind.RESTART, "restarts"), (Kind.SKIPPED, "skipped steps"), (Kind.REWIND, "loss spikes and rewinds"),
    ):  # fmt: skip
        if count := sum(event.kind is kind for event in events):
            found[what] = f"{count:,}"
    if run.starts:
        found["first started"] = run.starts[0].when
    written = [point.written for point in run.checkpoints if point.written]
    if run.checkpoints:
        steps = ", ".join(f"{point.step:,}" for point in run.checkpoints[-5:])
        found["checkpoints"] = f"{len(run.checkpoints)}: {'… ' if len(run.checkpoints) > 5 else ''}{steps}"
    if written:
        found["last checkpoint written"] = written[-1].replace("T", " ").replace("Z", " UTC")
    start = run.values.get("TrainConfig.init_from")
    if start is not None:
        found["started from"] = str(start)
    if dtype := about.get("identity", {}).get("compute_dtype"):
        found["computed in"] = str(dtype)
    if versions := about.get("versions"):
        found["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    found["folder"] = run.folder
    return found


def best_validations(run: Run) -> dict[str, tuple[int, float, float | None]]:
    """By objective: step and loss on text of the best validation, and the unigram predictor's loss then."""
    found = {}
    for key, series in run.series.items():
        parts = key.split("/")
        if parts[0] != "eval" or len(parts) != 3 or parts[2] != "text_loss" or not np.isfinite(series.values_N).any():
            continue
        at = int(np.nanargmin(np.where(np.isfinite(series.values_N), series.values_N, np.nan)))
        unigram = run.series.get(f"eval/{parts[1]}/unigram_loss")
        beside = unigram.last if unigram and math.isfinite(unigram.last) and unigram.last > 0 else None
        found[parts[1]] = int(series.steps_N[at]), float(series.values_N[at]), beside
    return found


def count_parameters(record: dict[str, Any]) -> int:
    """Parameters in a checkpoint's record; 0 if it says nothing of them."""
    leaves = record.get("leaves", {})
    return sum(math.prod(shape) for name, (shape, _) in leaves.items() if name.startswith("params/"))


def cards(run: Run, found: dict[str, list[str]]) -> str:
    """The four to six numbers of one run that are looked for first, `found` by `overview` of it alone; HTML."""
    shown: list[tuple[str, str]] = [(found[key][0], key) for key in ("steps", "last loss") if key in found]
    for objective, (_, value, unigram) in list(best_validations(run).items())[:2]:
        beside = f"; {percent(abs(1 - value / unigram))} {_side(value, unigram)} unigram" if unigram else ""
        shown.append((_loss(value), f"best validation on text, {title(objective)}{beside}"))
    if parameters := count_parameters(run.record):
        shown.append((short(parameters), "parameters"))
    if "tokens_per_second" in run.series:
        shown.append((short(median(run.series["tokens_per_second"])), "tokens a second"))
    items = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in shown
    )
    return f'<div class="cards">{items}</div>'


def overview(runs: Sequence[Run], events: Sequence[Sequence[Event]]) -> dict[str, list[str]]:
    """The facts of all runs and their events: name of the fact → text for each run, "" where it is not known."""
    found = [facts(run, of_run) for run, of_run in zip(runs, events, strict=True)]
    longest = max(found, key=len)
    names = list(dict.fromkeys([*longest, *(name for one in found for name in one)]))
    # What is said of each objective stands together: "best validation, …".
    families = list(dict.fromkeys(name.partition(",")[0] for name in names))
    names.sort(key=lambda name: families.index(name.partition(",")[0]))
    return {name: [one.get(name, "") for one in found] for name in names}


def _side(value: float, unigram: float) -> str:
    return "below" if value <= unigram else "above"


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
