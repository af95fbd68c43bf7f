"""Checkpoints in a bucket when something is wrong with them: damage, leftovers, strangers' objects, refusals."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax import fault_points
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints
from deltalm_jax.training.checkpoint_record import UnreadableError
from deltalm_jax.training.run_files import run_files
from deltalm_jax.training.saved_steps import SavedSteps
from deltalm_jax.training.storage import run_path
from tests.support import runs
from tests.support.bucket_server import bucket_for_all, place_of

NAME = "bucket-of-checkpoints"
STATE = {"params": {"a": jnp.arange(300.0)}, "step": jnp.int32(0)}


@pytest.fixture(scope="module")
def store():
    with bucket_for_all(NAME) as served:
        yield served


@pytest.fixture
def directory(store, request) -> pathlib.Path:
    """An empty place for checkpoints."""
    yield run_path(f"gs://{NAME}/{place_of(request)}/checkpoints")
    store.refuse = lambda method, name: None


def opened(directory, warn=pytest.fail, keep=2, **more) -> Checkpoints:
    return Checkpoints(directory, keep, None, warn, **more)


def save_all(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, STATE, {})
    checkpoints.wait()


def below(directory, store, *steps: int) -> list[str]:
    return [name for step in steps for name in store.names(f"{directory.path.partition('/')[2]}/{step}/")]


def test_saved_and_restored(directory, store):
    with opened(directory) as checkpoints:
        save_all(checkpoints, 5)
        restored = checkpoints.restore(checkpoints.latest(), STATE)
    assert restored["params"]["a"].tobytes() == STATE["params"]["a"].tobytes()
    assert checkpoints.latest()["files"].keys() == {
        name.partition("checkpoints/5/")[2] for name in below(directory, store, 5) if not name.endswith("record.json")
    }


def test_what_is_large_goes_in_parts_and_comes_back_whole(directory, store, tmp_path):
    """Arrays and files of more than what the clients send, and read, at once."""
    array = np.random.default_rng(0).standard_normal(4_000_000, np.float32)
    with opened(directory) as checkpoints:
        checkpoints.save(5, {"a": jnp.asarray(array)}, {})
        checkpoints.wait()
        restored = checkpoints.restore(checkpoints.latest(), {"a": jax.ShapeDtypeStruct(array.shape, array.dtype)})
    assert np.asarray(restored["a"]).tobytes() == array.tobytes()
    run_dir = directory.parent
    with run_files(run_dir, True, pytest.fail) as files:
        (files.folder / "metrics.jsonl").write_bytes(array.tobytes())
    assert store[f"{run_dir.path.partition('/')[2]}/metrics.jsonl"] == array.tobytes()
    with run_files(run_dir, True, pytest.fail) as files:
        assert (files.folder / "metrics.jsonl").read_bytes() == array.tobytes()
        (files.folder / "profile").mkdir()
        (files.folder / "profile" / "trace").write_bytes(b"1")
        before = len(store.requests)
        files.keep()
        files.keep()
        sent = {name.rpartition("/")[2] for _, name in store.requests[before:] if name}
        assert sent == {"metrics.jsonl", "trace"}
        store.refuse = lambda method, name: 403
        (files.folder / "profile" / "trace").write_bytes(b"12")
        files._warn = (warnings := []).append
        files.keep()
        store.refuse = lambda method, name: None
    assert "profile/trace cannot be written: Forbidden" in warnings[0]
    assert store[f"{run_dir.path.partition('/')[2]}/profile/trace"] == b"12", "the next time makes up for it"


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "add"])
def test_damage_to_any_object_is_noticed_and_the_older_step_taken(directory, store, damage):
    with opened(directory) as checkpoints:
        save_all(checkpoints, 5, 10)
    names = below(directory, store, 10)
    assert len(names) > 8
    for name in names:
        content, hurt = store[name], name
        match damage:
            case "flip":
                middle = len(content) // 2
                store[name] = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            case "cut":
                store[name] = content[:-1]
            case "delete":
                del store.objects[name]
            case "add":
                hurt = f"{name.replace('record.json', 'state/record.json')}2"
                store[hurt] = b"x"
        warnings: list[str] = []
        assert SavedSteps(directory, warnings.append).latest()["step"] == 5, name
        gone = damage == "delete" and name.endswith("record.json")  # then it is a step that was never finished
        assert gone == (not warnings)
        assert all(f"gs://{NAME}/{hurt}" in warning for warning in warnings)
        store.objects.pop(hurt, None)
        store[name] = content
    assert SavedSteps(directory, pytest.fail).latest()["step"] == 10


@pytest.mark.parametrize("status", [403, 418])
@pytest.mark.parametrize("what", ["list", "record.json", "_METADATA"])
def test_a_step_that_cannot_be_read_now_is_not_passed_over(directory, store, status, what):
    """It may be sound: the run would go on from the older one, and retire it."""
    with opened(directory) as checkpoints:
        save_all(checkpoints, 5, 10)
    wanted = "" if what == "list" else f"10/{what}" if what == "record.json" else f"10/state/{what}"
    store.refuse = lambda method, name: status if name.endswith(wanted) and (name or not wanted) else None
    steps = SavedSteps(directory, pytest.fail)
    with pytest.raises(UnreadableError, match="cannot be (listed|read)"):
        steps.latest()


def test_the_older_record_goes_first_and_only_when_the_newer_is_there(directory, store):
    with opened(directory, keep=1) as checkpoints:
        save_all(checkpoints, 5)
        old, before = below(directory, store, 5), len(store.requests)
        save_all(checkpoints, 10)
    changes = [(method, name.partition("checkpoints/")[2]) for method, name in store.requests[before:]]
    removed = [name for method, name in changes if method == "DELETE" and name.startswith("5/")]
    assert removed[0] == "5/record.json"
    assert {f"{directory.path.partition('/')[2]}/{name}" for name in removed} == {*old}
    written = [at for at, (method, name) in enumerate(changes) if method != "DELETE" and name.startswith("10/")]
    assert [changes[at][1] for at in written].index("10/record.json") == len(written) - 1, "the record is written last"
    assert changes.index(("DELETE", "5/record.json")) > written[-1]


def test_an_older_step_stays_unless_the_newer_verifies(directory, store, monkeypatch):
    with opened(directory, keep=1) as checkpoints:
        save_all(checkpoints, 5)

        def damage(point, step):
            if point == "save/record" and step == 10:
                store[next(name for name in below(directory, store, 10) if name.endswith("_METADATA"))] = b"{}"

        monkeypatch.setattr(fault_points, "_handler", damage)
        checkpoints.save(10, STATE, {})
        with pytest.raises(
            CheckpointError, match=r"step 10 is not saved: .*_METADATA has 2 bytes, .*newest saved step is 5"
        ):
            checkpoints.wait()
    assert not below(directory, store, 10)
    assert SavedSteps(directory, pytest.fail).latest()["step"] == 5


def test_what_killed_runs_left_is_removed_and_strangers_objects_are_not(directory, store):
    with opened(directory) as checkpoints:
        save_all(checkpoints, 5, 10)
    top = directory.path.partition("/")[2]
    del store.objects[f"{top}/5/record.json"]  # killed while it was retired
    store[f"{top}/20/state/_METADATA"] = b"{}"  # killed while it was written
    strangers = [
        f"{top}/{name}" for name in ("8/notes.txt", "30/state/d", "30/best.txt", "best/state/d", "README", "9")
    ]
    for name in strangers:
        store[name] = b"years of work"
    warnings: list[str] = []
    with opened(directory, warnings.append, keep=1) as checkpoints:
        assert not below(directory, store, 5, 20)
        assert sum("was never finished, and is removed" in w for w in warnings) == 2
        assert {w.partition(f"{directory}/")[2].partition(" ")[0] for w in warnings if "no checkpoint" in w} == {
            "30", "8", "9", "README", "best",
        }  # fmt: skip
        save_all(checkpoints, 35)
        assert {*strangers} <= {*store.names(top)}
        save_all(checkpoints, 30)  # needs their name
    assert all(store[name] == b"years of work" for name in strangers if "/30/" not in name)
    assert store[f"{top}/30.set-aside-1/best.txt"] == store[f"{top}/30.set-aside-1/state/d"] == b"years of work"
    assert SavedSteps(directory, pytest.fail).verify(30)


@pytest.mark.parametrize(("status", "code"), [(403, 2), (418, 70)], ids=["forbidden", "outage"])
@pytest.mark.parametrize("at", ["state/_sharding", "state/manifest.ocdbt", "state/_METADATA", "record.json"])
def test_a_store_that_takes_no_more_fails_the_save_and_only_that(directory, store, at, status, code):
    with opened(directory) as checkpoints:
        save_all(checkpoints, 5)
        store.refuse = lambda method, name: status if method == "POST" and name.endswith(f"10/{at}") else None
        with pytest.raises(CheckpointError, match=r"step 10 is not saved: .*refused.*newest saved step is 5") as error:
            save_all(checkpoints, 10)
        assert error.value.exit_code == code, "by which a scheduler knows whether to start the run again"
        store.refuse = lambda method, name: None
        save_all(checkpoints, 15)
        assert not below(directory, store, 10)
        assert checkpoints.latest()["step"] == 15


SCRIPT = """
import sys
import jax.numpy as jnp
from deltalm_jax.training.checkpoint import Checkpoints
from deltalm_jax.training.storage import run_path
from tests.faults import injector
directory, fault = sys.argv[1:]
injector.install([injector.Fault.parse(fault)])
with Checkpoints(run_path(directory), 1, None, print) as checkpoints:
    for step in (5, 10):
        checkpoints.save(step, {"params": {"a": jnp.arange(300.0)}, "step": jnp.int32(0)}, {})
        checkpoints.wait()
"""


@pytest.mark.parametrize(
    ("fault", "newest", "unfinished"),
    [
        ("kill@*:10:save/begin", 5, []),
        ("kill@*:10:save/written", 5, [10]),
        ("kill@*:10:save/record", 5, [10]),
        ("kill@*:10:save/retire", 10, []),
        ("kill@*:5:save/delete", 10, [5]),
    ],
)
def test_killed_at_any_point_of_a_save_the_newest_step_is_whole(directory, store, fault, newest, unfinished):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory), fault], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    assert SavedSteps(directory, pytest.fail).latest()["step"] == newest
    found = {step: below(directory, store, step) for step in (5, 10)}
    assert unfinished == [
        step for step, names in found.items() if names and not any(name.endswith("record.json") for name in names)
    ]
    warnings: list[str] = []
    with opened(directory, warnings.append, keep=1) as checkpoints:
        assert not below(directory, store, *unfinished), "leftovers are gone"
        assert len(warnings) == len(unfinished)
        save_all(checkpoints, 15)
    assert SavedSteps(directory, pytest.fail).steps() == [15]
    assert not below(directory, store, 5, 10)
