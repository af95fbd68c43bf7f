"""One owner for a run directory: two runs in one would overwrite each other's checkpoints without a word."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from deltalm_jax.errors import UserError


class RunDirectoryError(UserError, RuntimeError):
    """The run directory cannot be used, or another process is training in it."""


@contextlib.contextmanager
def owned(run_dir: pathlib.Path, process_id: int | None) -> Iterator[None]:
    """Makes the run directory if need be and holds `RUN_DIR/.lock` while a run goes on there.

    Of several processes, the first holds it for all, and each other one `RUN_DIR/.lock-N`: if the run is started once more,
    its processes must not reach the coordinator of the run that goes on, which would end that run.

    The lock is the operating system's (`flock`): it ends with the process, however that ends, so none is ever stale. Over
    NFS it holds between hosts only where the server and both hosts support that (NFSv4, or NFSv3 with its lock service,
    not mounted with `nolock`); elsewhere two hosts can both take it, and nothing here can tell.

    Args:
      run_dir: the run's folder.
      process_id: this process's number; None for a run of one process.

    Raises:
      RunDirectoryError: it cannot be made, or is in use; names host, process and start of the run that holds it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"--run_dir={run_dir} cannot be made: {error}") from error
    with open(run_dir / (f".lock-{process_id}" if process_id else ".lock"), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunDirectoryError(
                f"{run_dir} is in use by another run ({file.read().strip()}): wait for it, stop it, or choose another "
                "--run_dir"
            ) from None
        file.truncate(0)
        file.write(f"{socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
