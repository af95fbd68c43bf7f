"""Requests to stop: SIGTERM (preemption) and SIGINT (Ctrl-C) end the run at the next step boundary, with a checkpoint."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

# BSD's EX_TEMPFAIL: "try again later". Schedulers can tell it from failure (1) and from success (0).
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class StopRequest:
    """Notes signals; `at_boundary()` says whether to stop here. Use as a context manager: handlers are put back on leaving.

    With several processes a signal to any one of them stops all at the same step: jax.distributed listens for SIGTERM,
    and SIGINT is handed on to it. A second SIGINT while the first is being honoured raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._asked = 0
        self.signal: signal.Signals | None = None
        self._stopped = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            # jax.distributed has a SIGTERM notifier of its own, which `at_boundary` asks.
            if number == signal.SIGTERM and jax.process_count() > 1:
                continue
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def at_boundary(self) -> bool:
        """Whether to stop after this step. To be asked after each; all processes get the same answer at the same step."""
        if jax.process_count() > 1:
            # Numbered from 1 in every process: jax lets a signal that came before the first of these calls stop the run at
            # the one numbered 1, and at no other. Steps will not do, for a run may go back to an earlier one.
            self._asked += 1
            self._stopped = multihost_utils.reached_preemption_sync_point(self._asked)
            if self._stopped:
                self.signal = self.signal or signal.SIGTERM
        else:
            self._stopped = self.signal is not None
        return self._stopped

    @property
    def exit_code(self) -> int:
        """Exit code that tells a scheduler why the run ended: 0, 75 (preempted) or 130 (interrupted)."""
        if not self._stopped:
            return 0
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_PREEMPTED
