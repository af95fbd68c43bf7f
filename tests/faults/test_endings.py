"""What must work when much else does not: a process that ends, streams that are gone, errors on the way out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from deltalm_jax.training import checkpoint_record
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.checkpoint_record import UnreadableError
from deltalm_jax.training.exchange import DisagreementError, Exchange
from deltalm_jax.training.ownership import owned
from deltalm_jax.training.storage import RunDirectoryError, RunDirectoryInUseError
from tests.support.runs import ROOT

ENDING = """
import os, sys, threading
from deltalm_jax.training.faults import end_now
threading.Thread(target=lambda: end_now(70, "last words \\udcff" * 20000)).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("stderr", ["gone", "full", "nobody reads"])
def test_a_process_ends_whatever_became_of_its_stderr(stderr):
    """From a thread, as the watchdog does."""
    reading, writing = os.pipe()
    if stderr == "gone":
        os.close(reading)
    elif stderr == "full":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-c", ENDING],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=writing,
        timeout=30,
        check=False,
    )
    assert done.returncode == 70


def test_a_run_outlives_its_terminal(tmp_path):
    """Steady streams: nothing is raised where nobody listens, and the exit code stays that of the run."""
    script = (
        "import sys; from deltalm_jax import redaction; redaction.install(steady=True)\n"
        "for i in range(3): print('x' * 5000, flush=True); print('y', file=sys.stderr, flush=True)\n"
        "open('done', 'w').close(); sys.exit(75)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=full, stderr=full,
            cwd=tmp_path, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 75
    assert (tmp_path / "done").exists()


def test_a_run_directory_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("deltalm_jax.training.ownership.fcntl.flock", refuse)
    with pytest.raises(RunDirectoryError, match="cannot be locked: No locks available"), owned(tmp_path, None):
        raise AssertionError("not reached")
    monkeypatch.undo()
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="cannot be locked: Is a directory"), owned(tmp_path / "folder", None):
        raise AssertionError("not reached")
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot be made: a file is there"), owned(tmp_path / "file", None):
        raise AssertionError("not reached")
    with owned(tmp_path, None), pytest.raises(RunDirectoryInUseError), owned(tmp_path, None):
        raise AssertionError("not reached")
    with pytest.raises(FileNotFoundError), owned(tmp_path, None):
        raise FileNotFoundError("of the run itself")


@pytest.fixture
def saved(tmp_path):
    """Checkpoints 5 and 10 of a state of one number."""
    import jax.numpy as jnp

    said = []
    with Checkpoints(tmp_path, 1, 5, said.append) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, {"a": jnp.float32(step)}, {})
    return tmp_path, said


def test_a_checkpoint_that_cannot_be_read_now_is_neither_passed_over_nor_retired(saved, monkeypatch):
    """A network file system that stands still says nothing of the file."""
    import jax.numpy as jnp

    directory, said = saved
    plain = checkpoint_record.digest_file

    def stale(path):
        if "/10/" in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(path)

    with Checkpoints(directory, 1, None, said.append) as checkpoints:
        monkeypatch.setattr(checkpoint_record, "digest_file", stale)
        with pytest.raises(UnreadableError, match="checkpoint 10 may be sound, but .* Stale file handle"):
            checkpoints.latest()
        monkeypatch.undo()
        monkeypatch.setattr(checkpoint_record.pathlib.Path, "read_bytes", _io_error_at(10))
        checkpoints.save(15, {"a": jnp.float32(15)}, {})
        checkpoints.wait()
        monkeypatch.undo()
        assert checkpoints.steps() == [10, 15]
        assert checkpoints.latest()["step"] == 15


def _io_error_at(step):
    plain = checkpoint_record.pathlib.Path.read_bytes

    def read_bytes(path):
        if path.parent.name == str(step):
            raise OSError(errno.EIO, "Input/output error")
        return plain(path)

    return read_bytes


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    import jax.numpy as jnp

    said = []

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def run():
        with Checkpoints(tmp_path, 1, None, said.append) as checkpoints:
            monkeypatch.setattr(checkpoints, "_commit", fail)
            checkpoints.save(5, {"a": jnp.float32(5)}, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert "WARNING: step 5 is not saved: No space left on device" in said[-1]
    checkpoints = Checkpoints(tmp_path, 1, None, said.append)
    monkeypatch.setattr(checkpoints, "_commit", fail)
    with pytest.raises(CheckpointError, match="the run finished, but step 5 is not saved"), checkpoints:
        checkpoints.save(5, {"a": jnp.float32(5)}, {}, ending="the run finished")


def test_processes_that_were_started_differently_are_told_so(monkeypatch):
    exchange = Exchange()
    exchange.hosts = ["a", "b"]
    values = {"TrainConfig.eval_every": 5, "data": "digest", "TrainConfig.steps": 9}
    exchange.require_same(values)
    rows = []
    monkeypatch.setattr("deltalm_jax.training.exchange._gather", lambda own: rows.append(own.copy()) or own[None])
    exchange.require_same(values)
    exchange.require_same(values | {"TrainConfig.eval_every": 6})
    monkeypatch.setattr("deltalm_jax.training.exchange._gather", lambda own: __import__("numpy").stack(rows))
    with pytest.raises(
        DisagreementError, match="process 1 on b was started with other values .*: TrainConfig.eval_every"
    ):
        exchange.require_same(values)


def test_only_the_first_process_retires_steps(tmp_path, monkeypatch):
    """The others' part of a save may end before the record is written, or fails to be."""
    import jax
    import jax.numpy as jnp

    with Checkpoints(tmp_path, 2, None, print) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, {"a": jnp.float32(step)}, {})
    with Checkpoints(tmp_path, 1, None, print) as other:
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        other._commit_or_discard(tmp_path / "15", {"step": 15})
        monkeypatch.undo()
    assert other.steps() == [5, 10]
