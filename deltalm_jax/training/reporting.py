"""What a run says of itself while it runs: each step's numbers to the files, progress to the screen."""

from __future__ import annotations

import collections
import pathlib
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltalm_jax.training.flops import Throughput
from deltalm_jax.training.guards import Guard
from deltalm_jax.training.metrics import METRICS, MetricsFile, TensorBoardFile, metrics_line


class Reporter:
    """Turns a step's metrics into a line of `metrics.jsonl` and of progress, one step late.

    Args:
      folder: where the files go.
      start: steps done already.
      stop: last step of this run.
      log_every: steps between lines of progress where there is no terminal.
      tensorboard: whether TensorBoard gets the lines too.
      throughput: what utilisation is measured by.
      guard: looks at each line.
      speaks: whether this process writes and prints (one of several does).
    """

    def __init__(
        self,
        folder: pathlib.Path,
        start: int,
        stop: int,
        *,
        log_every: int,
        tensorboard: bool,
        throughput: Throughput,
        guard: Guard,
        speaks: bool,
    ):
        self._throughput, self._guard = throughput, guard
        self._files: list[MetricsFile | TensorBoardFile] = []
        if speaks:
            self._files.append(MetricsFile(folder / METRICS, start))
        if speaks and tensorboard:
            self._files.append(TensorBoardFile(folder / "tensorboard", start))
        self._display = Display(stop, start, log_every, quiet=not speaks)
        self._pending: tuple[int, Any, float, float] | None = None
        self._more: dict[str, float] = {}
        self._tick = time.perf_counter()
        self._times: list[tuple[float, float, float]] = []
        self._blocked = 0.0

    def step(self, step: int, metrics: Any, waited: float) -> None:
        """Takes a step's metrics, still on the devices, and reports those of the step before.

        Args:
          step: updates done.
          metrics: from the train step.
          waited: seconds the step waited for its batch.

        Raises:
          NonFiniteError, LossSpike: of the step before.
        """
        self._report({})
        now = time.perf_counter()
        seconds = now - self._tick
        self._pending, self._tick = (step, metrics, seconds, waited), now
        self._times.append((seconds, seconds - self._blocked, waited))
        self._blocked = 0.0

    def add(self, more: dict[str, float]) -> None:
        """More to be said of the last step, when it is reported."""
        self._more |= more

    def mean_times(self) -> tuple[float, float, float]:
        """Means over the steps since the last call: seconds, seconds not spent waiting for devices, and for a batch."""
        times, self._times = self._times, []
        if not times:
            return 0.0, 0.0, 0.0
        whole, host, waited = (sum(column) / len(times) for column in zip(*times, strict=True))
        return whole, host, waited

    def flush(self, more: dict[str, float], by_group: bool = False) -> None:
        """Reports the last step now, with what else there is to say of it: a validation, shown by groups if asked."""
        self._report(more)
        for text in evaluation_lines(more, by_group):
            self.say(text)

    def restart_clock(self) -> None:
        """What was done since the last step (validation, saving) is not billed to the next."""
        self._tick, self._blocked = time.perf_counter(), 0.0

    def say(self, text: str) -> None:
        """One line of text."""
        self._display.say(text)

    def close(self) -> None:
        """Takes the bar off the screen and closes the files."""
        self._display.close()
        for file in self._files:
            file.close()

    def _report(self, more: dict[str, float]) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, metrics, seconds, waited = pending
        began = time.perf_counter()
        values = jax.device_get(metrics)
        self._blocked += time.perf_counter() - began
        line = metrics_line(step, values, seconds, waited, self._throughput) | self._more | more
        self._more = {}
        for file in self._files:
            file.write(line)
        self._display.step(line)
        if warning := self._guard.look(line):
            self.say(warning)


class Display:
    """A live bar on a terminal; elsewhere a line every `log_every` steps. Speed is the mean of the last `log_every` steps.

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
        self._recent: collections.deque[dict[str, Any]] = collections.deque(maxlen=log_every)
        # FORCE_COLOR, which notebooks and build servers set, makes rich take a pipe for a terminal.
        self._live = self._console.is_terminal and self._console.file.isatty() and not quiet
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
        # The first step carries the compilation: not a basis for the time left, nor for the speed of others.
        if self._began and step > self._began[1] and self._recent[0]["step"] == self._began[1]:
            self._recent.clear()
        self._recent.append(line)
        self._began = self._began or (now, step)
        began_at, began_step = self._began
        shown = step % self._log_every == 0 or step in (self._start + 1, self._steps)
        if not (self._live or shown):
            return
        rate = (now - began_at) / (step - began_step) if step > began_step else None
        left = f"{_duration(rate * (self._steps - step))} left" if rate is not None else "…"
        mfu = "" if line["mfu"] is None else f"MFU {self._mean('mfu'):.1%}  "
        text = (
            f"loss {line['loss']:.3f}  {self._mean('tokens_per_second'):,.0f} tokens/s  {mfu}"
            f"waiting for data {self._mean('data_wait_fraction'):.0%}  {left}"
        )
        if self._live:
            self._progress.update(self._task, completed=step, text=text)
        else:
            self.say(f"step {step:>6,}/{self._steps:,}  {text}")

    def _mean(self, name: str) -> float:
        """Of a rate, over the time of the last steps: one of them alone may be anything where the host is busy."""
        seconds = sum(line["step_seconds"] for line in self._recent)
        return sum(line[name] * line["step_seconds"] for line in self._recent) / seconds

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


def evaluation_lines(evaluation: dict[str, float], by_group: bool) -> list[str]:
    """Readable lines for what an `Evaluator` returned: one an objective, and one for each way of grouping languages."""
    lines = []
    for key in evaluation:
        if not (key.startswith("eval/") and key.endswith("/unigram_loss")):
            continue
        prefix = key.removesuffix("/unigram_loss")
        text, unigram = evaluation[f"{prefix}/text_loss"], evaluation[key]
        gain = 1 - text / unigram
        lines.append(
            f"validation {prefix.removeprefix('eval/')}: loss {evaluation[f'{prefix}/loss']:.3f}; on text {text:.3f} nats, "
            f"unigram predictor {unigram:.3f} ({abs(gain):.1%} {'below' if gain >= 0 else 'above'} it)"
        )
        groups: dict[str, list[str]] = {}
        for other, value in evaluation.items():
            if other.startswith(f"{prefix}/") and other.count("/") == 4 and other.endswith("/text_loss"):
                kind, name = other.split("/")[2:4]
                groups.setdefault(kind, []).append(f"{name} {value:.2f}")
        if by_group:
            lines += [f"  on text by {kind.replace('_', ' ')}: {', '.join(values)}" for kind, values in groups.items()]
    return lines
