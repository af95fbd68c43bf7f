"""Hangs: a run that stands still for too long says where, and ends."""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable

from deltalm_jax.training.faults import EXIT_LOST, GO_ON, end_now, within

# Compiling, restoring and evaluating take longer than a step.
LONG = 6.0


class Watchdog:
    """Ends the process with exit code 70 if a phase of its life lasts too long, after the stacks of all threads.

    Use as a context manager. The time in which the process itself is stopped (SIGSTOP, a sleeping machine) does not count,
    unless it is more than 12 limits.

    Args:
      limit: seconds that a phase may last; 0 for no limit.
      who: how messages name the process; by default by host and number.
      tell: is given the message before the process ends, e.g. to tell the other processes; it returns within seconds
        (it is not waited for longer).
      elsewhere: says what the other processes are doing, for the message.
    """

    def __init__(
        self,
        limit: float,
        who: str = "",
        tell: Callable[[str], None] | None = None,
        elsewhere: Callable[[], str] | None = None,
    ) -> None:
        self._limit = limit
        self._who = who or f"process {os.getpid()} on {socket.gethostname()}"
        self._tell, self._elsewhere = tell, elsewhere
        self._phase: tuple[str, float] = ("start", LONG)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._limit:
            self._thread.join()

    def phase(self, name: str, times: float = 1.0) -> None:
        """A phase begins, and with it the count of its seconds. Costs less than a microsecond.

        Args:
          name: for the message, e.g. "step 7".
          times: how many times the limit this phase may last.
        """
        self._phase = (name, times)  # one assignment: the other thread sees the old or the new

    @property
    def doing(self) -> str:
        """The name of the phase."""
        return self._phase[0]

    def _watch(self) -> None:
        poll = min(1.0, self._limit / 4)
        seen, lasted, last = self._phase, 0.0, time.monotonic()
        while not self._done.wait(poll):
            # Python's own threads stand still with a call into C that holds its lock; this timer of C's does not.
            faulthandler.dump_traceback_later(2 * LONG * self._limit, exit=True, file=2)
            now = time.monotonic()
            lasted, last = lasted + min(now - last, 2 * poll), now
            if self._phase is not seen:
                seen, lasted = self._phase, 0.0
            elif lasted > self._limit * seen[1]:
                self._end(seen[0], lasted)
        faulthandler.cancel_dump_traceback_later()

    def _end(self, phase: str, lasted: float) -> None:
        within(5.0, lambda: faulthandler.dump_traceback(2, all_threads=True))
        text = f"{self._who} hangs: it has been at {phase!r} for {lasted:.0f} s (TrainConfig.hang_limit)"
        elsewhere = self._elsewhere() if self._elsewhere is not None else ""
        if (tell := self._tell) is not None:
            within(15.0, lambda: tell(text))
        end_now(EXIT_LOST, f"error: {text}. Its threads are shown above.{elsewhere}\n{GO_ON}")
