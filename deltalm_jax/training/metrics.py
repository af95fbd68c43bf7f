"""What a run says of itself: `metrics.jsonl`, one line a step, and the progress on the screen."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class MetricsFile:
    """Appends lines to `metrics.jsonl`; on resume, first cuts it back to the step resumed from.

    Args:
      path: the file.
      resume_step: lines of later steps are dropped (they will be written again, with equal values).
    """

    def __init__(self, path: pathlib.Path, resume_step: int):
        kept = []
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line + b"\n")
                except (ValueError, KeyError):  # a kill can leave half a line at the end
                    continue
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(b"".join(kept))
        temporary.replace(path)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the run

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line. Numbers that JSON has no word for (nan, inf) become strings."""
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(plain) + "\n")

    def close(self) -> None:
        self._file.close()


class Display:
    """A live bar on a terminal; elsewhere a line every `log_every` steps.

    Args:
      steps: last step of this run.
      start: steps done already.
      log_every: steps between lines where there is no terminal.
      quiet: say nothing (all processes but the first).
    """

    def __init__(self, steps: int, start: int, log_every: int, quiet: bool = False):
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._steps, self._start, self._log_every = steps, start, log_every
        self._began: tuple[float, int] | None = None  # when the first step was done, and which it was
        self._live = self._console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("train", total=steps, completed=start, text="compiling the step …")
        if self._live:
            self._progress.start()

    def say(self, text: str) -> None:
        """One line of text, above the bar if there is one."""
        self._console.print(text, markup=False)

    def step(self, line: dict[str, Any]) -> None:
        """Shows one line of metrics."""
        now, step = time.monotonic(), line["step"]
        # The first step carries the compilation: not a basis for the time left.
        self._began = self._began or (now, step)
        began_at, began_step = self._began
        rate = (now - began_at) / (step - began_step) if step > began_step else None
        left = f"{_duration(rate * (self._steps - step))} left" if rate is not None else "…"
        text = (
            f"loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s  "
            f"waiting for data {line['data_wait_fraction']:.0%}  {left}"
        )
        if self._live:
            self._progress.update(self._task, completed=step, text=text)
        elif step % self._log_every == 0 or step in (self._start + 1, self._steps):
            self.say(f"step {step:>6,}/{self._steps:,}  {text}")

    def close(self) -> None:
        if self._live:
            self._progress.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
