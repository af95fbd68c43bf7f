"""What a run left in its folder, read as far as it can be; what cannot be read is noted, never passed over in silence."""

from __future__ import annotations

import array
import dataclasses
import datetime
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deltalm_jax.errors import UserError
from deltalm_jax.paths import store_errors
from deltalm_jax.training.checkpoint_record import CheckpointError, StepRecords, printable, read_record
from deltalm_jax.training.metrics import METRICS
from deltalm_jax.training.storage import check_readable

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LINES_NAMED = 5
_EVENTS = re.compile(r"tfevents\.([0-9]{1,11})\..*\.from-([0-9]{1,18})$")


class ReportError(UserError):
    """There is nothing to report; the message says what was looked for, and where."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A number's values in the order of the file.

    Attributes:
      steps_N: int64, updates done.
      values_N: float64; nan and the infinities as they were written.
    """

    steps_N: np.ndarray
    values_N: np.ndarray

    @property
    def last(self) -> float:
        """The newest value; there is at least one."""
        return float(self.values_N[-1])


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is there: its step, and when it was written (UTC), "" where its record cannot be read."""

    step: int
    written: str


@dataclasses.dataclass(frozen=True)
class Start:
    """A start of the run: the step that it started from, and when (UTC)."""

    step: int
    when: str


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      name: what it is called in the page; no two runs of a page have the same.
      folder: where it is, as text.
      series: every number of metrics.jsonl by its key; empty where there are none yet.
      texts: the last value of every key that is text.
      values: every value of the configuration by its name, and `origins` where each came from.
      data: data.json: task → {"objective", "rate", "epochs"}.
      rewinds: lines of rewinds.jsonl.
      checkpoints: those that are there, by step.
      starts: the first and all later ones, by time, as its TensorBoard files say; empty if it has none.
      record: of the newest checkpoint that has a readable one; else empty.
      notes: what is missing or damaged, a sentence each.
    """

    name: str
    folder: str
    series: dict[str, Series]
    texts: dict[str, str]
    values: dict[str, Any]
    origins: dict[str, str]
    data: dict[str, dict[str, Any]]
    rewinds: list[dict[str, Any]]
    checkpoints: list[Checkpoint]
    starts: list[Start]
    record: dict[str, Any]
    notes: list[str]


def read_run(folder: Path, name: str) -> Run:
    """Reads a run, which may be going on.

    Args:
      folder: the run's directory, a path of `run_path`.
      name: what to call it.

    Raises:
      ReportError: there is no such folder, or it is no run's: it has neither metrics.jsonl nor config.json.
      LocationError: the bucket cannot be reached.
    """
    check_readable(folder)
    shown = printable(folder)
    notes: list[str] = []
    try:
        with store_errors():
            if not folder.is_dir():
                found = "is a file: name a run's directory" if folder.is_file() else "there is no such folder"
                raise ReportError(f"{shown}: {found}")
            has_metrics = (folder / METRICS).exists()
            if not has_metrics and not (folder / "config.json").exists():
                raise ReportError(f"{shown} is no run: it has neither {METRICS} nor config.json")
            series, texts = _metrics(folder / METRICS, notes) if has_metrics else ({}, {})
            if not series:
                notes.append(f"{METRICS} holds no numbers" if has_metrics else f"There is no {METRICS} yet")
            config = _json_object(folder / "config.json", notes)
            data = _json_object(folder / "data.json", notes)
            rewinds = _rewinds(folder / "rewinds.jsonl", notes)
            starts = _starts(folder / "tensorboard", rewinds)
            checkpoints, record = _checkpoints(folder / "checkpoints", notes)
    except OSError as error:
        raise ReportError(f"{shown} cannot be read: {error.strerror or error}") from error
    values, origins = _object_at(config, "values"), _object_at(config, "origins")
    tasks = {task: about for task, about in data.items() if isinstance(about, dict)}
    return Run(name, shown, series, texts, values, origins, tasks, rewinds, checkpoints, starts, record, notes)


def _metrics(path: Path, notes: list[str]) -> tuple[dict[str, Series], dict[str, str]]:
    steps: dict[str, array.array[int]] = {}
    values: dict[str, array.array[float]] = {}
    texts: dict[str, str] = {}
    strange: set[str] = set()
    backwards, last = 0, -1
    for line in _json_lines(path, "step", notes):
        step = line.pop("step")
        backwards += step <= last
        last = step
        for key, value in line.items():
            number = _number(value)
            if number is not None:
                if key not in steps:
                    steps[key], values[key] = array.array("q"), array.array("d")
                steps[key].append(step)
                values[key].append(number)
            elif isinstance(value, str):
                texts[key] = value
            elif value is not None:
                strange.add(key)
    if backwards:
        notes.append(
            f"{METRICS}: the step does not grow at {_lines(backwards)}; all are shown, and the file's last counts as last"
        )
    if strange:
        notes.append(
            f"{METRICS}: neither numbers nor texts, and not shown: {', '.join(sorted(map(printable, strange)))}"
        )
    return {
        key: Series(np.frombuffer(steps[key], np.int64), np.frombuffer(values[key], np.float64)) for key in steps
    }, texts


def _number(value: Any) -> float | None:
    """A JSON value as a number; `MetricsFile` writes as texts those that JSON has no word for."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return _NOT_FINITE.get(value) if isinstance(value, str) else None


def _json_lines(path: Path, key: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Objects of a file that grows by lines, each with a whole number at `key`; others are noted by their place."""
    damaged: list[int] = []
    number, line = 0, b"\n"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
                if type(found[key]) is not int or not 0 <= found[key] < 2**63:
                    raise ValueError(key)
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged.append(number)
            else:
                yield found
    if damaged and damaged[-1] == number and not line.endswith(b"\n"):
        damaged.pop()
        notes.append(
            f"{path.name}: the last line is half written and is left out (the run is writing, or was killed while it did)"
        )
    if damaged:
        shown = ", ".join(f"{n:,}" for n in damaged[:_LINES_NAMED]) + (" …" if len(damaged) > _LINES_NAMED else "")
        notes.append(f"{path.name}: {_lines(len(damaged), 'damaged ')} left out: {shown}")


def _lines(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}line{'s' if count > 1 else ''}"


def _json_object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"There is no {path.name}")
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} is damaged and is left out: {error}")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{path.name} is no JSON object and is left out")
        return {}
    return found


def _object_at(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _rewinds(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    return list(_json_lines(path, "step", notes)) if path.exists() else []


def _starts(folder: Path, rewinds: list[dict[str, Any]]) -> list[Start]:
    """TensorBoard gets a file at each start, named by its time and its step. A rewind has one too, and is none."""
    if not folder.is_dir():
        return []
    names = sorted((int(found[1]), int(found[2])) for path in folder.iterdir() if (found := _EVENTS.search(path.name)))
    steps = [step for _, step in names]
    for rewind in rewinds:
        if rewind.get("back_to") in steps:
            at = len(steps) - 1 - steps[::-1].index(rewind["back_to"])
            del steps[at], names[at]
    return [
        Start(step, f"{datetime.datetime.fromtimestamp(when, datetime.UTC):%Y-%m-%d %H:%M} UTC") for when, step in names
    ]


def _checkpoints(folder: Path, notes: list[str]) -> tuple[list[Checkpoint], dict[str, Any]]:
    if not folder.is_dir():
        return [], {}
    found, newest = [], {}
    try:
        records = StepRecords(folder, notes.append)
        for step in records.steps():
            try:
                record = read_record(records.folder(step))
            except CheckpointError as error:
                notes.append(f"Checkpoint {step}: {error}")
                found.append(Checkpoint(step, ""))
            else:
                newest = record
                found.append(Checkpoint(step, printable(record["written"])))
    except CheckpointError as error:
        notes.append(str(error))
    return found, newest
