"""One owner for a run directory: two runs in one would overwrite each other's checkpoints without a word."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from deltalm_jax.paths import is_remote
from deltalm_jax.training.faults import end_now
from deltalm_jax.training.storage import RunDirectoryError, RunDirectoryInUseError, check_name, check_readable


@contextlib.contextmanager
def owned(run_dir: pathlib.Path, process_id: int | None) -> Iterator[Callable[[], None]]:
    """Makes the run directory if need be and holds `RUN_DIR/.lock` while a run goes on there.

    Of several processes, the first holds it for all, and each other one `RUN_DIR/.lock-N`: if the run is started once more,
    its processes must not reach the coordinator of the run that goes on, which would end that run.

    The lock is the operating system's (`flock`): it ends with the process, however that ends, so none is ever stale. Over
    NFS it holds between hosts only where the server and both hosts support that (NFSv4, or NFSv3 with its lock service,
    not mounted with `nolock`); where it only holds within a host, two hosts can both take it, and nothing here can tell.

    In a bucket the lock is an object with a heartbeat: see `store_lock.py`.

    Args:
      run_dir: the run's folder.
      process_id: this process's number; None for a run of one process.

    Yields:
      A function that makes sure that the directory is still this run's: raises OSError where that cannot be found out, and
      ends the process where it is another's.

    Raises:
      RunDirectoryInUseError: names host, process and start of the run that holds it.
      RunDirectoryError, LocationError: it cannot be made, locked or reached, or not be used for its name.
    """
    check_name(run_dir)
    if is_remote(run_dir):
        with _owned_in_store(run_dir, process_id) as confirm:
            yield confirm
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = "a file is there" if run_dir.is_file() else str(error)
        raise RunDirectoryError(f"--run_dir={run_dir} cannot be made: {found}") from error
    taken = False
    path = run_dir / (f".lock-{process_id}" if process_id else ".lock")
    try:
        with open(path, "a+", encoding="utf-8") as file:
            _take(file, run_dir)
            taken = True
            yield lambda: None
    except OSError as error:
        if taken:
            raise
        raise RunDirectoryError(
            f"{path} cannot be locked: {error.strerror or error}. The run directory must be writable, in a file system with "
            "locks (for Lustre: mounted with -o flock)"
        ) from error


@contextlib.contextmanager
def _owned_in_store(run_dir: pathlib.Path, process_id: int | None) -> Iterator[Callable[[], None]]:
    # Imported late: only such runs need tensorstore's client.
    from deltalm_jax.training.store_lock import StoreLock

    def say(text: str) -> None:
        print(text, flush=True)

    def lost(text: str) -> None:
        end_now(RunDirectoryInUseError.exit_code, f"error: {text}. Nothing more is written")

    lock = StoreLock(run_dir, process_id, say, lost)
    lock.take()
    try:
        check_readable(run_dir)
        yield lock.confirm
    finally:
        lock.release()


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
