"""How the benchmarks measure: on one core, warmed up, over several windows of time."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Rate:
    """Examples per second: of the best window, as on a machine that has nothing else to do, and of the median one."""

    best: float
    median: float

    def entry(self) -> dict[str, float]:
        """For the JSON object."""
        return {"examples_per_second": round(self.best, 1), "median": round(self.median, 1)}


def use_one_core() -> int:
    """Keeps this process, its threads and its children on one core; returns its number (-1 where it cannot be done).

    To be called before NumPy or TensorFlow make their threads.
    """
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    if not hasattr(os, "sched_setaffinity"):
        return -1
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def measure(run: Callable[[], int], windows: int = 8, seconds: float = 0.5) -> Rate:
    """Rate of `run`, which makes some examples and says how many; once beforehand, not timed.

    Args:
      run: the work.
      windows: how many rates are taken.
      seconds: shortest length of a window.
    """
    run()
    rates = []
    for _ in range(windows):
        examples, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            examples += run()
        rates.append(examples / elapsed)
    return Rate(max(rates), statistics.median(rates))


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def show(result: dict[str, Any], title: str, rows: list[tuple[str, Rate | None]], as_json: bool) -> None:
    """Prints a table of rates (None: the peer is not installed), or the result as one JSON object on the last line."""
    if as_json:
        print(json.dumps(result))
        return
    table = Table("", "examples/s, best", "median", title=title, title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, rate in rows:
        table.add_row(name, *(("not installed", "") if rate is None else (f"{rate.best:,.0f}", f"{rate.median:,.0f}")))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    about = result["machine"]
    console.print(f"one core of {about['processor']} ({about['cores']} cores, load {about['load']})", markup=False)
