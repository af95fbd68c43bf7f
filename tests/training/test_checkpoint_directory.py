"""The folder of checkpoints when something is wrong with it: failed saves, leftovers, strangers' files, links, no space."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from deltalm_jax import fault_points
from deltalm_jax.paths import LocationError
from deltalm_jax.training import checkpoint
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.ownership import owned
from deltalm_jax.training.saved_steps import SavedSteps
from tests.faults import injector
from tests.support.runs import ROOT

STATE = {"params": {"a": jnp.arange(300.0)}, "step": jnp.int32(0)}


def names(directory: pathlib.Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def opened(directory, warn=pytest.fail, keep=2, keep_every=None) -> Checkpoints:
    return Checkpoints(directory, keep, keep_every, warn)


def save_all(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, STATE, {})
    checkpoints.wait()


@pytest.fixture
def faults():
    """Installs faults of the injector's; they are gone after the test."""
    yield lambda *texts: injector.install([injector.Fault.parse(text) for text in texts])
    fault_points.install(None)


def check_until_told(checkpoints):
    """As the steps of a training run go by."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.01)


@pytest.mark.parametrize("point", ["save/written", "save/record"])
@pytest.mark.parametrize("how", ["check", "wait", "save", "close"])
def test_a_failed_save_leaves_nothing_and_is_told_at_the_next_call(tmp_path, faults, point, how):
    checkpoints = opened(tmp_path)
    save_all(checkpoints, 5)
    faults(f"full@*:10:{point}")
    checkpoints.save(10, STATE, {})
    message = rf"^step 10 is not saved: No space left on device \({tmp_path}/10; the newest saved step is 5\)$"
    calls = {"check": lambda: check_until_told(checkpoints), "save": lambda: checkpoints.save(15, STATE, {})}
    with pytest.raises(CheckpointError, match=message):
        calls.get(how, getattr(checkpoints, how))()
    assert names(tmp_path) == ["5"]
    if how != "close":
        save_all(checkpoints, 15)
        checkpoints.close()
        assert checkpoints.latest()["step"] == 15, "a failure does not disable what saves"


def test_a_failed_last_save_says_that_the_run_finished_without_it(tmp_path, faults):
    checkpoints = opened(tmp_path)
    faults("full@*:10:save/record")
    checkpoints.save(10, STATE, {}, ending="the run finished")
    with pytest.raises(CheckpointError, match=r"^the run finished, but step 10 is not saved: No space left on device"):
        checkpoints.close()
    checkpoints.close()
    assert names(tmp_path) == []


def test_a_save_that_cannot_begin_fails_at_once(tmp_path, monkeypatch):
    checkpoints = opened(tmp_path)
    save_all(checkpoints, 5)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(checkpoints._orbax, "save", refuse)
    with pytest.raises(CheckpointError, match=r"step 10 is not saved: Read-only file system .*newest saved step is 5"):
        checkpoints.save(10, STATE, {})
    checkpoints.close()
    assert names(tmp_path) == ["5"]


@pytest.mark.parametrize("damage", ["record", "file"])
def test_an_older_step_is_not_retired_unless_the_newer_one_verifies(tmp_path, monkeypatch, damage):
    """What was written is read back first."""
    checkpoints = opened(tmp_path, keep=1)
    save_all(checkpoints, 5)
    write = checkpoint.write_record

    def write_badly(folder, record):
        write(folder, record)
        path = folder / "record.json" if damage == "record" else folder / next(iter(record["files"]))
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(checkpoint, "write_record", write_badly)
    checkpoints.save(10, STATE, {})
    with pytest.raises(CheckpointError, match=r"step 10 is not saved: .*(has changed since|bytes, its record says)"):
        checkpoints.close()
    assert names(tmp_path) == ["5"]
    assert SavedSteps(tmp_path, pytest.fail).latest()["step"] == 5


def test_older_steps_are_whole_until_the_record_is_written(tmp_path, faults):
    """Up to the very point, nothing of the older step has been touched."""
    checkpoints, seen = opened(tmp_path, keep=1), {}
    save_all(checkpoints, 5)

    def look(point, step):
        if step == 10 and point != "save/begin":
            seen[point] = SavedSteps(tmp_path, pytest.fail).latest()["step"], (tmp_path / "5" / "record.json").exists()

    fault_points.install(look)
    save_all(checkpoints, 10)
    checkpoints.close()
    assert seen == {"save/written": (5, True), "save/record": (5, True), "save/retire": (10, True)}
    assert names(tmp_path) == ["10"]


def test_an_older_step_that_cannot_be_removed_does_not_fail_the_save(tmp_path, faults):
    warnings: list[str] = []
    checkpoints = opened(tmp_path, warnings.append, keep=1)
    save_all(checkpoints, 5)
    faults("full@*:5:save/delete")
    save_all(checkpoints, 10)
    assert "step 10 is saved, but an older one cannot be removed: No space left on device" in warnings[0]
    save_all(checkpoints, 15)
    checkpoints.close()
    assert [n for n in names(tmp_path) if not n.startswith(".")] == ["15"]
    opened(tmp_path).close()
    assert names(tmp_path) == ["15"], "the next start removes the rest"


def test_a_step_that_lost_a_file_does_not_push_out_a_whole_one(tmp_path):
    checkpoints = opened(tmp_path)
    save_all(checkpoints, 5, 10)
    (tmp_path / "10" / "state" / "_METADATA").unlink()
    save_all(checkpoints, 15)
    checkpoints.close()
    assert names(tmp_path) == ["15", "5"]


def test_what_a_killed_save_left_is_removed_at_the_next_start(tmp_path):
    save_all(checkpoints := opened(tmp_path), 5)
    checkpoints.close()
    (tmp_path / "10" / "state.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (tmp_path / "15" / "state").mkdir(parents=True)
    (tmp_path / "15" / f".record.json.{'a' * 32}.tmp").touch()
    (tmp_path / "20").mkdir()
    (tmp_path / ".deleting-3-1" / "state").mkdir(parents=True)
    warnings: list[str] = []
    opened(tmp_path, warnings.append).close()
    assert names(tmp_path) == ["5"]
    assert warnings == [f"WARNING: checkpoint {n} was never finished, and is removed" for n in (10, 15, 20)]


def test_strangers_files_are_named_and_never_removed(tmp_path):
    """Neither at the start, nor when steps are retired, nor when a save needs the name."""
    outside = tmp_path / "outside"
    (outside / "state").mkdir(parents=True)
    (outside / "state" / "precious").touch()
    directory = tmp_path / "checkpoints"
    (directory / "8").mkdir(parents=True)
    (directory / "8" / "notes.txt").write_text("mine")
    (directory / "best").mkdir()
    (directory / "07").mkdir()
    (directory / "README").touch()
    (directory / "9").touch()
    (directory / "10").symlink_to(outside)
    (directory / "12").symlink_to(tmp_path / "nowhere")
    (directory / ".deleting-4-1").symlink_to(outside)
    before, warnings = names(directory), []
    checkpoints = opened(directory, warnings.append, keep=1)
    assert names(directory) == before
    named = {w.partition(f"{directory}/")[2].partition(" ")[0] for w in warnings}
    assert named == {*before}
    assert checkpoints.latest() is None
    save_all(checkpoints, 5, 11)
    assert names(directory) == sorted([*before, "11"])
    warnings.clear()
    save_all(checkpoints, 8, 9, 10, 12)
    checkpoints.close()
    assert len(warnings) == 4
    assert "is now" in warnings[0]
    assert (directory / "8.set-aside-1" / "notes.txt").read_text() == "mine"
    assert (directory / "10.set-aside-1").is_symlink()
    assert (outside / "state" / "precious").exists()
    assert checkpoints.latest()["step"] == 12


def test_links_inside_a_step_are_not_followed_when_it_is_removed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    checkpoints = opened(tmp_path / "checkpoints", keep=1)
    save_all(checkpoints, 5)
    (tmp_path / "checkpoints" / "5" / "state" / "link").symlink_to(tmp_path / "outside")
    save_all(checkpoints, 10)
    checkpoints.close()
    assert names(tmp_path / "checkpoints") == ["10"]
    assert (tmp_path / "outside" / "precious").exists()


def test_a_directory_that_cannot_be_made_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=rf"no checkpoint can be saved in {tmp_path}/file/checkpoints: .*Not a dir"
    ):
        opened(tmp_path / "file" / "checkpoints")


def test_a_directory_that_may_not_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode & os.W_OK))
    with pytest.raises(
        CheckpointError, match=rf"no checkpoint can be saved in {tmp_path}: no permission to write there"
    ):
        opened(tmp_path)


SCRIPT = """
import pathlib, resource, signal, sys
import jax, jax.numpy as jnp
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from tests.faults import injector

directory, *faults = sys.argv[1:]
injector.install([injector.Fault.parse(text) for text in faults if text != "small files"])
checkpoints = Checkpoints(pathlib.Path(directory), 1, None, print)
state = {"a": jax.random.normal(jax.random.key(0), (500, 500))}
checkpoints.save(5, state, {})
checkpoints.wait()
if "small files" in faults:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
checkpoints.save(10, state, {}, ending="the run finished")
try:
    checkpoints.close()
except CheckpointError as error:
    sys.exit(f"error: {error}")
"""


def run_script(directory, *faults):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(directory), *faults]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_disk_that_takes_no_more_while_arrays_are_written(tmp_path):
    """A limit on the size of files stands for a full disk: orbax's own threads meet it, in the middle of a file."""
    done = run_script(tmp_path, "small files")
    assert done.returncode == 1, done.stderr
    told = (
        f"error: the run finished, but step 10 is not saved: File too large ({tmp_path}/10; the newest saved step is 5)"
    )
    assert told in done.stderr.splitlines()
    assert names(tmp_path) == ["5"]
    assert SavedSteps(tmp_path, pytest.fail).latest()["step"] == 5


@pytest.mark.parametrize(
    ("fault", "newest", "left"),
    [
        ("kill@*:10:save/begin", 5, ["5"]),
        ("kill@*:10:save/written", 5, ["10", "5"]),
        ("kill@*:10:save/record", 5, ["10", "5"]),
        ("kill@*:10:save/retire", 10, ["10", "5"]),
        ("kill@*:5:save/delete", 10, [".deleting-5", "10"]),
    ],
)
def test_killed_at_any_point_of_a_save_the_newest_step_is_whole(tmp_path, fault, newest, left):
    done = run_script(tmp_path, fault)
    assert done.returncode == -9, done.stderr
    assert sorted(name.rpartition("-")[0] or name for name in names(tmp_path)) == left
    steps = SavedSteps(tmp_path, pytest.fail)
    assert steps.latest()["step"] == newest
    warnings: list[str] = []
    checkpoints = opened(tmp_path, warnings.append, keep=1)
    assert all(n in ("5", "10") for n in names(tmp_path)), "leftovers are gone"
    assert len(warnings) == (newest == 5 and "10" in left)
    save_all(checkpoints, 15)
    checkpoints.close()
    assert names(tmp_path) == ["15"]


@pytest.mark.parametrize("name", ["run[1]", "run*", "what?"])
def test_a_name_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """What orbax wrote in a folder run[1] verified, and could not be read."""
    with pytest.raises(LocationError, match="orbax takes for a pattern; choose another --run_dir"):
        opened(tmp_path / name / "checkpoints")
    with pytest.raises(LocationError, match="orbax takes for a pattern"), owned(tmp_path / name, None):
        raise AssertionError("not reached")
    assert not names(tmp_path)
