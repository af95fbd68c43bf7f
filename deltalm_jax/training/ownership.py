"""One owner for a run directory: two runs in one would overwrite each other's checkpoints without a word."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import TextIO

from deltalm_jax.errors import UserError


class RunDirectoryError(UserError, RuntimeError):
    """The run directory cannot be used."""


class RunDirectoryInUseError(RunDirectoryError):
    """Another run goes on in the run directory."""


@contextlib.contextmanager
def owned(run_dir: pathlib.Path, process_id: int | None) -> Iterator[None]:
    """Makes the run directory if need be and holds `RUN_DIR/.lock` while a run goes on there.

    Of several processes, the first holds it for all, and each other one `RUN_DIR/.lock-N`: if the run is started once more,
    its processes must not reach the coordinator of the run that goes on, which would end that run.

    The lock is the operating system's (`flock`): it ends with the process, however that ends, so none is ever stale. Over
    NFS it holds between hosts only where the server and both hosts support that (NFSv4, or NFSv3 with its lock service,
    not mounted with `nolock`); where it only holds within a host, two hosts can both take it, and nothing here can tell.

    Args:
      run_dir: the run's folder.
      process_id: this process's number; None for a run of one process.

    Raises:
      RunDirectoryInUseError: names host, process and start of the run that holds it.
      RunDirectoryError: it cannot be made or locked.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"--run_dir={run_dir} cannot be made: {error}") from error
    taken = False
    path = run_dir / (f".lock-{process_id}" if process_id else ".lock")
    try:
        with open(path, "a+", encoding="utf-8") as file:
            _take(file, run_dir)
            taken = True
            yield
    except OSError as error:
        if taken:
            raise
        raise RunDirectoryError(
            f"{path} cannot be locked: {error.strerror or error}. The run directory must be writable, in a file system with "
            "locks (for Lustre: mounted with -o flock)"
        ) from error


def _take(file: TextIO, run_dir: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise RunDirectoryInUseError(
            f"{run_dir} is in use by another run ({file.read().strip()}): wait for it, stop it, or choose another --run_dir"
        ) from None
    file.truncate(0)
    file.write(f"{socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
