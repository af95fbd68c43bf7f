"""The one place that knows jax.distributed from the inside: its key-value store, and its way to end a process."""

from __future__ import annotations

import ctypes
import signal
import socket
from collections.abc import Callable
from typing import Any

_PREFIX = "deltalm/peers/"
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Coordination:
    """A record for each process, which all can read; process 0 serves them.

    Attributes:
      process_id: this process's number.
      num_processes: processes in all.
      address: "host:port" of process 0.
    """

    def __init__(self) -> None:
        from jax._src import distributed

        state = distributed.global_state
        self._client: Any = state.client
        self.process_id, self.num_processes = state.process_id, state.num_processes
        self.address: str = state.coordinator_address or ""

    @classmethod
    def of_this_run(cls) -> Coordination | None:
        """None where the process is alone."""
        found = cls()
        return found if found._client is not None and found.num_processes > 1 else None

    def write(self, text: str) -> None:
        """Replaces this process's record. Blocks while process 0 is stopped."""
        self._client.key_value_set(f"{_PREFIX}{self.process_id}", text, allow_overwrite=True)

    def read(self) -> dict[int, str]:
        """The records of all processes that have written one. Blocks while process 0 is stopped."""
        return {int(key.rpartition("/")[2]): text for key, text in self._client.key_value_dir_get(_PREFIX)}

    def answers(self) -> bool:
        """Whether process 0 still listens at its address."""
        return answers(self.address)


def answers(address: str) -> bool:
    """Whether anything listens at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except (OSError, ValueError):
        return False
    return True


_handler = None


def on_abort(act: Callable[[], None] | None) -> None:
    """Calls `act` when the process aborts (SIGABRT), in the thread that does so; None takes it out again.

    jax.distributed aborts the process from a thread of its own as soon as process 0's connection breaks, past Python's
    handlers and without a place to hook in. `act` may end the process otherwise; if it returns, the abort goes on.
    """
    global _handler
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p

    def handler(number: int) -> None:
        library.signal(number, None)  # an abort in here is final
        if act is not None:
            act()

    _handler = None if act is None else _HANDLER(handler)  # kept alive
    library.signal(signal.SIGABRT, ctypes.cast(_handler, ctypes.c_void_p) if _handler else None)
