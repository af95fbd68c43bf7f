"""Batches made ahead of the step that needs them, in one background thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterates over `make(start)`, …, `make(stop - 1)` in order, up to `depth` of them made in advance.

    `make` runs in one thread of its own, so batches come in order. What it raises is raised by `next`. Close it (or
    use it as a context manager) when leaving early.

    Attributes:
      waited: seconds the last `next` had to wait; 0 means the data was there in time.
    """

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int):
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._left = max(stop - start, 0)
        self.waited = 0.0
        self._thread = threading.Thread(target=self._run, args=(make, start, stop), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[int], T], start: int, stop: int) -> None:
        for index in range(start, stop):
            try:
                item: tuple[T | None, BaseException | None] = (make(index), None)
            except BaseException as error:  # handed over to the consumer, which raises it
                item = (None, error)
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or item[1] is not None:
                return

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._left:
            raise StopIteration
        began = time.perf_counter()
        item, error = self._queue.get()
        self.waited = time.perf_counter() - began
        if error is not None:
            self._left = 0
            raise error
        self._left -= 1
        return item  # type: ignore[return-value]

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread; batches not yet taken are dropped."""
        self._closed.set()
        self._thread.join(timeout=30)
