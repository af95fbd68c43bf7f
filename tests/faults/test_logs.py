"""A full or failing disk under a run's numbers: the run goes on, says so, and nothing is torn or out of order."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from deltalm_jax.training import steady_file
from deltalm_jax.training.metrics import MetricsFile, TensorBoardFile
from deltalm_jax.training.steady_file import LogError, SteadyFile
from tests.support import runs
from tests.support.toy_data import write_toy_data
from tests.training.test_metrics import read_tensorboard


class Disk:
    """Stands for `os.write`: full while `room` is not None, after so many bytes; each refused byte as ENOSPC."""

    def __init__(self, write=os.write):
        self.room: int | None = None
        self._write = write

    def write(self, file: int, data) -> int:
        if self.room is None or file in (1, 2):
            return self._write(file, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = self._write(file, data[: self.room])
        self.room -= done
        return done


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(steady_file.os, "write", disk.write)
    return disk


def lines_of(path: pathlib.Path) -> list[int]:
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n"), "the last line is whole"
    return [json.loads(line)["step"] for line in content.splitlines()]


def test_lines_wait_for_room_and_none_is_torn(tmp_path, disk, capsys):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write({"step": 1, "loss": 1.0})
    disk.room = 9
    for step in (2, 3, 4):
        file.write({"step": step, "loss": 1.0})
        assert lines_of(path) == [1]
    disk.room = None
    file.write({"step": 5, "loss": 1.0})
    assert lines_of(path) == [1, 2, 3, 4, 5]
    file.close()
    err = capsys.readouterr().err
    assert err.count("WARNING") == 1
    assert f"WARNING: {path}: cannot be written (No space left on device). The run goes on" in err
    assert err.endswith(f"{path}: can be written again\n")


def test_what_cannot_be_taken_back_at_once_is_taken_back_later(tmp_path, disk, monkeypatch):
    """A disk that is gone for a while cannot even be made shorter."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write({"step": 1})

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as gone:
        gone.setattr(steady_file.os, "ftruncate", refuse)
        disk.room = 5
        file.write({"step": 2})
        assert path.read_bytes() == b'{"step": 1}\n{"ste'
        disk.room = None
        file.write({"step": 3})
        assert path.read_bytes() == b'{"step": 1}\n{"ste', "nothing is put behind half a line"
    file.write({"step": 4})
    assert lines_of(path) == [1, 2, 3, 4]


def test_what_is_lost_in_the_end_is_said(tmp_path, disk, capsys):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    disk.room = 0
    file.write({"step": 1})
    file.close()
    assert "12 bytes could not be written and are lost" in capsys.readouterr().err


def test_what_waits_is_bounded(tmp_path, disk, monkeypatch, capsys):
    monkeypatch.setattr(steady_file, "MAX_PENDING_BYTES", 1000)
    file = SteadyFile(tmp_path / "log")
    disk.room = 0
    for _ in range(25):
        file.write(b"x" * 99 + b"\n")
        file.flush()
        assert len(file._pending) <= 1000
    disk.room = None
    file.flush()
    assert (tmp_path / "log").read_bytes() == (b"x" * 99 + b"\n") * 3
    assert "can be written again, but 2,200 bytes that were to be written are lost" in capsys.readouterr().err


def test_tensorboard_goes_on(tmp_path, disk, capsys):
    """More events than the queue of tensorboardX holds, in which its own way of writing would have come to a stop."""
    disk.room = 0
    file = TensorBoardFile(tmp_path / "tensorboard", 0)
    for step in range(1, 41):
        file.write({"step": step, "loss": float(step)})
    file._writer.flush()
    disk.room = None
    file.close()
    assert read_tensorboard(tmp_path) == {"loss": {step: float(step) for step in range(1, 41)}}
    assert capsys.readouterr().err.count("WARNING") == 1


@pytest.mark.parametrize("make", [MetricsFile, TensorBoardFile])
def test_at_the_start_it_is_an_error(tmp_path, make):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogError, match="cannot be"):
        make(tmp_path / "file" / "below", 0)


# All that goes through `SteadyFile` fails from step 5 on, up to step 12.
FULL = """
import sys
from deltalm_jax import fault_points, train
from deltalm_jax.training import steady_file
from tests.faults.test_logs import Disk

disk = Disk()
steady_file.os.write = disk.write

def fill(point, step):
    if point == "step":
        disk.room = 100 if 5 <= step < 12 else None

fault_points.install(fill)
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_run_goes_on_through_a_full_disk_and_ends_as_ever(tmp_path):
    prepared = tmp_path / "data"
    write_toy_data(prepared, runs.TOY_TASKS)
    more = ("TrainConfig.steps=15", "TrainConfig.eval_every=0")
    assert runs.run(tmp_path / "undisturbed", prepared, *more).returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", FULL, *runs.command(tmp_path / "run", prepared, *more)[3:]],
        env=runs.environment(), capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl: cannot be written (No space left on device)" in done.stderr
    assert "metrics.jsonl: can be written again\n" in done.stderr
    found, expected = (
        [(line["step"], line["loss"], line["batch_digest"]) for line in runs.metrics(tmp_path / name)]
        for name in ("run", "undisturbed")
    )
    assert len(found) == 15
    assert found == expected
    assert set(read_tensorboard(tmp_path / "run")["loss"]) == set(range(1, 16))
