"""What is wrong with a step's numbers: an update left out, too many of them in a row, a loss that leapt."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterable
from typing import Any

from deltalm_jax.errors import UserError


class NonFiniteError(UserError, RuntimeError):
    """Training diverged: updates left out in a row, a state that is not finite, or a loss that leaps again and again."""

    exit_code = 65


class LossSpike(Exception):
    """The loss leapt at `step`, to `loss` from a `median` before: the run goes back and takes other data."""

    def __init__(self, step: int, loss: float, median: float):
        super().__init__(f"step {step:,}: the loss leapt to {loss:.4g}, the median before it is {median:.4g}")
        self.step, self.loss, self.median = step, loss, median


class Guard:
    """Looks at each step's line of metrics, which is the same on all processes; so all decide alike.

    Args:
      max_skipped_in_a_row: updates that may be left out in a row; with one more the run stops.
      spike_factor: a loss above this many times the median of the last `spike_window` is a spike; 0: none is.
      spike_window: losses that the median is of. Before there are as many, nothing is a spike.
      recent: losses before the first step, the latest last, from the checkpoint.

    Attributes:
      recent: losses of the last `spike_window` steps whose update was made.
    """

    def __init__(
        self, max_skipped_in_a_row: int, spike_factor: float, spike_window: int, recent: Iterable[float] = ()
    ) -> None:
        self._max_in_a_row, self._factor = max_skipped_in_a_row, spike_factor
        self.recent: collections.deque[float] = collections.deque(recent, spike_window if spike_factor else 0)

    def look(self, line: dict[str, Any]) -> str | None:
        """A warning to be shown, if there is one.

        Args:
          line: from `metrics_line`.

        Raises:
          NonFiniteError: too many updates in a row were left out.
          LossSpike: the loss is a spike.
        """
        step, loss, in_a_row = line["step"], line["loss"], int(line["skipped_in_a_row"])
        if in_a_row:
            what = f"step {step:,}: loss {loss}, gradient norm {line['grad_norm']}"
            if in_a_row > self._max_in_a_row:
                raise NonFiniteError(
                    f"{what}: {in_a_row} updates in a row were left out, so the run stops. The last checkpoint precedes "
                    "them. Lower OptimizerConfig.learning_rate or lengthen warmup_steps in a new run, or leave this data "
                    "out (TrainConfig.skipped_data)"
                )
            return f"WARNING: {what}: the update is left out ({in_a_row} in a row, {int(line['skipped'])} in all)"
        if self._factor and len(self.recent) == self.recent.maxlen:
            median = statistics.median(self.recent)
            if loss > self._factor * median or not math.isfinite(loss):
                raise LossSpike(step, loss, median)
        self.recent.append(loss)
        return None
