"""What a run says of itself: `metrics.jsonl`, one line a step, and the progress on the screen."""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltalm_jax.errors import UserError
from deltalm_jax.training.checkpoint import write_atomically
from deltalm_jax.training.config import Config


class NonFiniteError(UserError, RuntimeError):
    """The loss or the gradient is not a finite number any more."""


class Reporter:
    """Turns a step's metrics into a line of `metrics.jsonl` and of progress, one step late.

    Args:
      run_dir: where the files go.
      start: steps done already.
      stop: last step of this run.
      log_every: steps between lines of progress where there is no terminal.
      speaks: whether this process writes and prints (one of several does).
    """

    def __init__(self, run_dir: pathlib.Path, start: int, stop: int, log_every: int, speaks: bool):
        self._run_dir = run_dir
        self._file = MetricsFile(run_dir / "metrics.jsonl", start) if speaks else None
        self._display = Display(stop, start, log_every, quiet=not speaks)
        self._pending: tuple[int, Any, float, float] | None = None
        self._tick = time.perf_counter()

    def begin(self, config: Config, headline: str, compute_dtype: str) -> None:
        """Says where the run starts and writes `config.json`."""
        if self._file:
            content = {"values": config.values(), "origins": config.origins}
            write_atomically(self._run_dir / "config.json", json.dumps(content, indent=1) + "\n")
        self.say(
            f"{headline} on {jax.device_count()} {jax.devices()[0].platform} device(s), {jax.process_count()} "
            f"process(es), {compute_dtype}; {self._run_dir}"
        )

    def step(self, step: int, metrics: Any, waited: float) -> None:
        """Takes a step's metrics, still on the devices, and reports those of the step before.

        Args:
          step: updates done.
          metrics: from the train step.
          waited: seconds the step waited for its batch.

        Raises:
          NonFiniteError: the step before diverged.
        """
        self._report({})
        now = time.perf_counter()
        self._pending, self._tick = (step, metrics, now - self._tick, waited), now

    def flush(self, evaluation: dict[str, float]) -> None:
        """Reports the last step now, with its validation if there was one."""
        self._report(evaluation)
        for text in evaluation_lines(evaluation):
            self.say(text)

    def restart_clock(self) -> None:
        """What was done since the last step (validation, saving) is not billed to the next."""
        self._tick = time.perf_counter()

    def say(self, text: str) -> None:
        """One line of text."""
        self._display.say(text)

    def close(self) -> None:
        """Takes the bar off the screen and closes the file."""
        self._display.close()
        if self._file:
            self._file.close()

    def _report(self, evaluation: dict[str, float]) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, metrics, seconds, waited = pending
        line = metrics_line(step, jax.device_get(metrics), seconds, waited) | evaluation
        if self._file:
            self._file.write(line)
        self._display.step(line)
        if not np.isfinite([line["loss"], line["grad_norm"]]).all():
            raise NonFiniteError(
                f"step {step}: loss {line['loss']}, gradient norm {line['grad_norm']}. Nothing was saved after it. Lower "
                "OptimizerConfig.learning_rate or lengthen warmup_steps, and go on from the last checkpoint in "
                f"{self._run_dir}"
            )


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
        write_atomically(path, b"".join(kept).decode("utf-8"))
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


def metrics_line(step: int, metrics: Any, seconds: float, waited: float) -> dict[str, Any]:
    """One line of `metrics.jsonl`: losses in nats per target, rates per second, `batch_digest` in hexadecimal."""
    tokens = float(metrics["input_tokens"]) + float(metrics["target_tokens"])
    line: dict[str, Any] = {"step": step, "loss": float(metrics["loss"])}
    line |= {name: float(value) for name, value in metrics.items() if name.startswith("loss/")}
    line |= {
        "learning_rate": float(metrics["learning_rate"]),
        "grad_norm": float(metrics["grad_norm"]),
        "tokens_per_second": tokens / seconds,
        "target_tokens_per_second": float(metrics["target_tokens"]) / seconds,
        "data_wait_fraction": min(waited / seconds, 1.0),
        "step_seconds": seconds,
        "batch_digest": "".join(f"{int(word):08x}" for word in metrics["batch_digest"]),
    }
    return line


def evaluation_lines(evaluation: dict[str, float]) -> list[str]:
    """Readable lines for what an `Evaluator` returned."""
    lines = []
    for key in evaluation:
        if key.endswith("/text_loss"):
            name = key.split("/")[1]
            text, unigram = evaluation[key], evaluation[f"eval/{name}/unigram_loss"]
            gain = 1 - text / unigram
            lines.append(
                f"validation {name}: loss {evaluation[f'eval/{name}/loss']:.3f}; on text {text:.3f} nats, unigram "
                f"predictor {unigram:.3f} ({abs(gain):.1%} {'below' if gain >= 0 else 'above'} it)"
            )
    return lines
