"""What the processes of a run tell one another from time to time, so that they decide alike and the slow one is named."""

from __future__ import annotations

import dataclasses
import socket

import jax
import numpy as np
from jax.experimental import multihost_utils

_NAME_BYTES = 64
# A process holds the others up if its own work takes this share of a step, and this many times what theirs does (median).
_NOTABLE_SHARE, _NOTABLE_RATIO = 0.1, 2.0


@dataclasses.dataclass(frozen=True)
class Told:
    """What each process told at one step, equal on all of them; float64 [P] each, by process.

    Attributes:
      step_seconds: mean duration of the steps since the last time.
      host_seconds: the part of it in which the process did not wait for its devices.
      data_seconds: the part of it in which it waited for a batch.
      save_seconds: since the last checkpoint was begun.
    """

    step_seconds: np.ndarray
    host_seconds: np.ndarray
    data_seconds: np.ndarray
    save_seconds: np.ndarray


class Exchange:
    """Joins the processes' figures, in one small collective; with one process there is none. All must make and call it."""

    def __init__(self) -> None:
        name = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES)
        self.hosts = [
            bytes(row).decode(errors="replace").rstrip() for row in _gather(np.frombuffer(name, np.uint8).copy())
        ]

    def __call__(self, step_seconds: float, host_seconds: float, data_seconds: float, save_seconds: float) -> Told:
        """Tells this process's figures, and returns everyone's. Waits for the devices if there are several processes."""
        own = np.array([step_seconds, host_seconds, data_seconds, save_seconds], np.float32)
        return Told(*_gather(own).astype(np.float64).T)

    def metrics(self, told: Told) -> dict[str, float]:
        """The figures of the slowest process and of the median, and which process is the slowest."""
        out: dict[str, float] = {}
        for name, seconds_P in (("host", told.host_seconds), ("data", told.data_seconds)):
            out[f"processes/{name}_seconds_slowest"] = float(seconds_P.max())
            out[f"processes/{name}_seconds_median"] = float(np.median(seconds_P))
            out[f"processes/{name}_slowest"] = float(seconds_P.argmax())
        return out

    def warning(self, told: Told) -> str | None:
        """One line that names the process that the others wait for, if there is such a one."""
        if len(self.hosts) == 1:
            return None
        for what, seconds_P in (("waiting for data", told.data_seconds), ("its own work", told.host_seconds)):
            slowest = int(seconds_P.argmax())
            seconds, step = float(seconds_P[slowest]), float(told.step_seconds.max())
            median = float(np.median(np.delete(seconds_P, slowest)))
            if seconds > _NOTABLE_SHARE * step and seconds > _NOTABLE_RATIO * median:
                return (
                    f"WARNING: process {slowest} on {self.hosts[slowest]} holds the others up: {seconds:.2f} s of each "
                    f"{step:.2f} s step go into {what} (the others: {median:.2f} s)"
                )
        return None


def _gather(own: np.ndarray) -> np.ndarray:
    """[P, …] of every process's array."""
    if jax.process_count() == 1:
        return own[None]
    return np.asarray(multihost_utils.process_allgather(own)).reshape(jax.process_count(), *own.shape)
