"""What the processes of a run tell one another from time to time, so that they decide alike and the slow one is named."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils

from deltalm_jax.errors import UserError

_NAME_BYTES = 64
_MOST_VALUES = 256
# A process holds the others up if its own work takes this share of a step, and this many times what theirs does (median).
_NOTABLE_SHARE, _NOTABLE_RATIO = 0.1, 2.0


class DisagreementError(UserError, ValueError):
    """The processes of the run were started with different configurations, or find different data."""


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

    def require_same(self, values: Mapping[str, Any]) -> None:
        """Compares what each process was started with: a difference would make one wait for another in vain.

        Args:
          values: {name: JSON-able value}, at most 256.

        Raises:
          DisagreementError: names what differs, and the first process whose value is not process 0's.
        """
        own = np.zeros((_MOST_VALUES, 8), np.uint8)
        for row, name in zip(own, sorted(values), strict=False):
            text = json.dumps([name, values[name]], sort_keys=True)
            row[:] = np.frombuffer(xxhash.xxh3_64_digest(text.encode()), np.uint8)
        differs = (all_PVX := _gather(own)) != all_PVX[0]
        if differs.any():
            names = [name for name, column in zip(sorted(values), differs.any(axis=(0, 2)), strict=False) if column]
            other = int(differs.any(axis=(1, 2)).argmax())
            raise DisagreementError(
                f"process {other} on {self.hosts[other]} was started with other values than process 0: "
                f"{', '.join(names) or 'more or fewer of them'}. Start all processes with the same command, version and data"
            )

    def metrics(self, told: Told) -> dict[str, float]:
        """The figures of the slowest process and of the median, and which process is the slowest; none where it is alone."""
        out: dict[str, float] = {}
        if len(self.hosts) == 1:
            return out
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
