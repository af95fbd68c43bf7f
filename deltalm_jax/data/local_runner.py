"""Runs a Beam pipeline on this machine: Beam's Python runner, in this process or with worker processes.

Beam's "DirectRunner" is not used: it first tries to download a Go binary (Prism). What is added to Beam's own
multi-processing mode: workers get the pipeline's options; their chatter goes to a file; and a
worker that dies (the usual cause is memory) ends the run with an error, where Beam alone waits for it for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms import environments

from deltalm_jax.errors import UserError

_PACKAGE_ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.2
# A worker also ends when a run does; that long may pass between the two.
_GRACE_SECONDS = 10.0
# What Beam raises for a dead worker at some moments; at others it waits.
_CHANNEL_LOST = "Channel closed prematurely"


class WorkerDiedError(UserError, RuntimeError):
    """A worker process ended in the middle of a run."""


def run_local(build: Callable[[beam.Pipeline], None], workers: int) -> None:
    """Builds a pipeline and runs it to its end.

    Args:
      build: adds the stages.
      workers: worker processes; 1 runs everything in this process.

    Raises:
      WorkerDiedError: a worker process was killed or crashed.
      Exception: whatever Beam raises for an error inside a stage.
    """
    # For the workers' process ids and output.
    with tempfile.TemporaryDirectory(prefix="deltalm_workers_") as folder:
        _run_in(build, workers, Path(folder, "workers.pids"), Path(folder, "workers.log"))


def _run_in(build: Callable[[beam.Pipeline], None], workers: int, pids: Path, log: Path) -> None:
    flags = [f"--direct_num_workers={workers}", f"--default_sdk_harness_log_level={logging.CRITICAL}"]
    options = PipelineOptions(flags)
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = fn_runner.ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    environment = None
    if workers > 1:
        # Workers find this package where this process found it.
        path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        command = (
            f"echo $$ >>{shlex.quote(str(pids))}; PYTHONPATH={shlex.quote(path)} exec {shlex.quote(sys.executable)} "
            f"-m apache_beam.runners.worker.sdk_worker_main >>{shlex.quote(str(log))} 2>&1"
        )
        environment = environments.SubprocessSDKEnvironment.from_command_string(command)
    runner = fn_runner.FnApiRunner(default_environment=environment, provision_info=provision)

    def run() -> None:
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline)
        pipeline.run().wait_until_finish()

    # Beam logs a stage's error with several long traces before it raises it; the exception says it all.
    with _level("apache_beam", logging.CRITICAL):
        if workers == 1:
            run()
        else:
            _run_watched(run, pids, log)


def _run_watched(run: Callable[[], None], pids: Path, log: Path) -> None:
    """Runs in another thread, and keeps an eye on the worker processes meanwhile."""
    errors: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="beam", daemon=True)
    with _silent_threads():
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                if any(not _alive(pid) for pid in _read_pids(pids)):
                    thread.join(_GRACE_SECONDS)
                    if thread.is_alive():
                        raise WorkerDiedError(_death_message(log))
        finally:
            if thread.is_alive():
                for pid in filter(_alive, _read_pids(pids)):
                    os.kill(pid, signal.SIGKILL)
                # Beam's threads notice, each in its own way, while their traces are still held back.
                thread.join(_GRACE_SECONDS / 5)
    if errors and _CHANNEL_LOST in str(errors[0]):
        raise WorkerDiedError(_death_message(log)) from errors[0]
    if errors:
        raise errors[0]


def _death_message(log: Path) -> str:
    printed = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    said = f" The last line it printed: {printed[-1]}" if printed and not printed[-1].startswith("INFO:") else ""
    return (
        "a worker process ended in the middle of its work; most often the system has killed it for memory. "
        f"Start again with fewer workers (--num_workers).{said}"
    )


def _read_pids(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _level(name: str, level: int) -> Iterator[None]:
    """A logger's level, for a while."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """Holds back the traces of Beam's helper threads, which all fail when a worker dies or an error ends the run."""
    before = threading.excepthook
    threading.excepthook = lambda arguments: None
    try:
        yield
    finally:
        threading.excepthook = before
