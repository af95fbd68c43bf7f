"""A trace of some steps on request, for TensorBoard's profile plugin or Perfetto."""

from __future__ import annotations

import pathlib
from typing import Any

import jax


class Profiler:
    """Records steps `first` to `last` of a run with `jax.profiler`; does nothing without them. Close it in the end.

    Args:
      steps: (first, last), counted from 1 as everywhere; None for no trace.
      folder: where the trace goes.
      kept_in: where it is in the end, if that is another place.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path, kept_in: pathlib.Path | None = None):
        self._steps, self._folder, self._running = steps, folder, False
        self._kept_in = kept_in or folder

    def unreachable(self, start: int, stop: int) -> str | None:
        """A warning if the steps do not all lie in those of the run, `start` + 1 to `stop`; then none is recorded."""
        if self._steps is None or start < self._steps[0] <= self._steps[1] <= stop:
            return None
        steps, self._steps = self._steps, None
        return f"WARNING: no trace is recorded: steps {steps} do not all lie in {start + 1} to {stop}"

    def before(self, step: int) -> None:
        """Call before a step begins."""
        if self._steps and step == self._steps[0] and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: Any) -> str | None:
        """Call once a step is under way; at the last one, waits for it, ends the trace and returns where it is."""
        if not (self._running and self._steps and step == self._steps[1]):
            return None
        jax.block_until_ready(results)
        self.close()
        return f"steps {self._steps[0]} to {self._steps[1]} are recorded in {self._kept_in}"

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
