"""Lets a script end although tf.data still runs ahead of it, in threads that call Python.

A thread that asks for Python's lock once Python has begun to shut down is ended on the spot, and TensorFlow then waits
for it for ever: a finished script would hang. So before that, sources run dry (`ending`), and the shutdown waits until
the calls that are under way (`call`) have come back and no new one has come for a moment.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator

_QUIET_SECONDS = 0.3
# Someone else's part of the data may go on for ever; then ending is left to TensorFlow.
_PATIENCE_SECONDS = 30.0


class _Calls:
    """The calls from TensorFlow's threads: how many are under way, and when the last one came back."""

    def __init__(self) -> None:
        self.ending = False
        self._lock = threading.Lock()
        self._under_way = 0
        self._last: float | None = None

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._last = time.monotonic()

    def wait(self) -> None:
        """Returns once they have come to rest; at once if there never was one."""
        self.ending = True
        until = time.monotonic() + _PATIENCE_SECONDS
        while (now := time.monotonic()) < until:
            with self._lock:
                if not self._under_way and (self._last is None or now - self._last >= _QUIET_SECONDS):
                    return
            time.sleep(_QUIET_SECONDS / 10)


_calls = _Calls()
atexit.register(_calls.wait)


@contextlib.contextmanager
def call() -> Iterator[None]:
    """Around (or `@call()` before) what TensorFlow calls; not around a generator's `yield`, where nothing runs."""
    with _calls.counted():
        yield


def ending() -> bool:
    """Whether the script has come to its end, so that more data is of no use."""
    return _calls.ending
