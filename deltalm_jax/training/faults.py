"""How a run ends before its time: requests to stop (SIGTERM, SIGINT), and exit codes that tell a scheduler why."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from deltalm_jax import redaction

# jax is imported late: handlers are to be in place as soon as the process runs.

# BSD's EX_TEMPFAIL: "try again later". Schedulers can tell it from failure (1) and from success (0).
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
# BSD's EX_SOFTWARE: this process hung, or ended because another process of the run was lost or failed.
EXIT_LOST = 70
GO_ON = "Started again, the run goes on from its newest checkpoint."

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Raised in the main thread by a signal that comes while there is nothing yet to save.

    Attributes:
      signal: what came.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number

    @property
    def exit_code(self) -> int:
        """75 for SIGTERM, 130 for SIGINT."""
        return exit_code_of(self.signal)


def exit_code_of(number: signal.Signals) -> int:
    """The exit code of a run that this signal has stopped."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


def end_now(code: int, text: str = "") -> NoReturn:
    """Ends the process at once, from whichever thread, with a last message; waits for nobody.

    Args:
      code: exit code.
      text: last words, for stderr; secrets are taken out.
    """

    def speak() -> None:
        _flush()
        if text:
            os.write(2, redaction.redact_record(f"{text}\n").encode(errors="backslashreplace"))

    try:
        within(2.0, speak)
    finally:
        os._exit(code)


def within(seconds: float, act: Callable[[], object]) -> None:
    """Does something that must not keep a process from its end, and waits so long for it.

    It may block for good (a lock that another thread holds, a pipe that nobody reads), or fail (a terminal that is gone).
    """

    def attempt() -> None:
        with contextlib.suppress(Exception):
            act()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


class StopRequest:
    """Notes signals; `at_boundary()` says whether to stop here. Use as a context manager: handlers are put back on leaving.

    Before `train_from_here()`, a signal raises `Stopped`: there is nothing to save. From then on, it is noted only, and
    the run stops at the next boundary. With several processes a signal to any one of them then stops all at the same
    step: jax.distributed listens for SIGTERM, and SIGINT is handed on to it. A second SIGINT raises KeyboardInterrupt; a
    second SIGTERM does nothing, so that it does not end the last save.
    """

    def __init__(self) -> None:
        self._asked = 0
        self.signal: signal.Signals | None = None
        self._stopped = False
        self._previous: dict[signal.Signals, object] = {}
        self._training = self._several = False
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        again, self.signal = self.signal is not None, self.signal or signal.Signals(number)
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)  # which commands of this project take as a request to stop
        elif not self._training and not again:
            raise Stopped(self.signal)
        elif self._training and number == signal.SIGINT and self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def train_from_here(self, several: bool) -> None:
        """From now on signals are noted, and raise nothing. The processes of the run are joined; are there several?"""
        self._training, self._several = True, several
        if not several:  # joined by jax.distributed, a single process has its SIGTERM notifier too
            signal.signal(signal.SIGTERM, self._note)

    def run(self, command: Sequence[str]) -> int:
        """Runs a command to its end and returns its exit code. A signal is handed on, and the end waited for all the same.

        Raises:
          Stopped: a signal came meanwhile.
        """
        # In a process group of its own: Ctrl-C on a terminal would reach it twice.
        self._child = subprocess.Popen(command, process_group=0)
        try:
            code = self._child.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            raise
        finally:
            self._child = None
        if self.signal is not None:
            raise Stopped(self.signal)
        return code

    @contextlib.contextmanager
    def ends_at_once(self, text: str, limit: float, late: Callable[[], str], code: int = EXIT_LOST) -> Iterator[None]:
        """Inside, a signal ends the process at once with its exit code: for a call that does not come back to Python.

        Args:
          text: what the process says after the signal's name.
          limit: seconds after which the process ends all the same.
          late: what it says then.
          code: its exit code then.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        previous = signal.set_wakeup_fd(writing)

        def wait() -> None:
            if not select.select([reading], [], [], limit)[0]:
                end_now(code, late())
            for number in os.read(reading, 1):
                if number in _SIGNALS:
                    end_now(exit_code_of(signal.Signals(number)), f"{signal.Signals(number).name}: {text}")

        thread = threading.Thread(target=wait, name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            os.close(writing)
            thread.join()
            os.close(reading)

    def at_boundary(self) -> bool:
        """Whether to stop after this step. To be asked after each; all processes get the same answer at the same step."""
        if self._several:
            from jax.experimental import multihost_utils

            # Numbered from 1 in every process: jax lets a signal that came before the first of these calls stop the run at
            # the one numbered 1, and at no other. Steps will not do, for a run may go back to an earlier one.
            self._asked += 1
            # It is told once; the boundary may be left by a rewind before it is heeded.
            self._stopped = multihost_utils.reached_preemption_sync_point(self._asked) or self._stopped
            if self._stopped:
                self.signal = self.signal or signal.SIGTERM
        else:
            self._stopped = self.signal is not None
        return self._stopped

    @property
    def exit_code(self) -> int:
        """Exit code that tells a scheduler why the run ended: 0, 75 (preempted) or 130 (interrupted)."""
        if not self._stopped or self.signal is None:
            return 0
        return exit_code_of(self.signal)
