"""Runs in a bucket of Google Cloud Storage, spoken to as Google's would be: a server on this machine has its JSON API."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax import checkpoints as checkpoints_command
from deltalm_jax import fault_points
from deltalm_jax.paths import LocationError
from deltalm_jax.saved_model import open_model
from deltalm_jax.training import storage, store_lock
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints, SavedSteps
from deltalm_jax.training.ownership import RunDirectoryError, RunDirectoryInUseError, owned
from deltalm_jax.training.storage import run_path
from deltalm_jax.training.store_lock import StoreLock
from deltalm_jax.weights.state_dict import abstract_params, flatten
from tests.support import runs
from tests.support.bucket_server import Bucket, bucket
from tests.support.toy_data import write_toy_data

NAME = "bucket-of-tests"
ME = f"{socket.gethostname()}, process {os.getpid()}"
STATE = {"params": {"a": jnp.arange(300.0)}, "step": jnp.int32(0)}
SHORT = ("TrainConfig.steps=12", "TrainConfig.checkpoint_every=4", "TrainConfig.eval_every=12")


@pytest.fixture(scope="module")
def store():
    """The one bucket of this module: this process's clients learn once where Google is."""
    with bucket(NAME) as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served


def place_of(request) -> str:
    """A test's own place in the bucket."""
    return re.sub(r"\W", "_", request.node.name)


@pytest.fixture
def directory(store, request) -> pathlib.Path:
    """An empty place for checkpoints."""
    yield run_path(f"gs://{NAME}/{place_of(request)}/checkpoints")
    store.refuse = lambda method, name: None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


def train(place, store: Bucket, run_dir, *more, faults=()):
    return subprocess.run(
        runs.command(run_dir, place / "data", *SHORT, *more, faults=faults),
        env=runs.environment(place / "cache") | store.environment,
        capture_output=True, text=True, timeout=300, cwd=place, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def killed(place, store):
    """A run that was killed when all of step 8 was written but its record, and gone on with; and one on a disk."""
    run_dir = f"gs://{NAME}/runs/killed"
    first = train(place, store, run_dir, faults=["kill@*:8:save/record"])
    assert first.returncode == -9, first.stderr
    left = store.names("runs/killed/")
    again = train(place, store, run_dir, "--profile_steps=10,11")
    assert again.returncode == 0, again.stderr
    whole = runs.run(place / "whole", place / "data", *SHORT, cache=place / "cache")
    assert whole.returncode == 0, whole.stderr
    return left, again.stdout


def fetched(store: Bucket, prefix: str, to: pathlib.Path) -> pathlib.Path:
    """The objects below a name, as files."""
    for name in store.names(prefix):
        path = to / name.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store[name])
    return to


def test_a_killed_run_goes_on_bit_equal_to_one_on_a_disk(killed, place, store, tmp_path):
    left, out = killed
    assert "runs/killed/checkpoints/4/record.json" in left
    assert "runs/killed/checkpoints/8/state/commit_success.txt" in left
    assert "runs/killed/checkpoints/8/record.json" not in left
    assert "WARNING: checkpoint 8 was never finished, and is removed" in out
    assert "is taken over: " in out
    assert "resuming at step 4 of 12" in out
    ours, theirs = fetched(store, "runs/killed/", tmp_path), place / "whole"
    lines = runs.metrics(ours), runs.metrics(theirs)
    assert [line["step"] for line in lines[0]] == list(range(1, 13))
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k in runs.SAME_METRICS or k.startswith("eval/")} == {
            k: v for k, v in b.items() if k in runs.SAME_METRICS or k.startswith("eval/")
        }
    states = runs.state(ours, 12), runs.state(theirs, 12)
    assert len(states[0]) > 100
    assert {k: v.tobytes() for k, v in states[0].items()} == {k: v.tobytes() for k, v in states[1].items()}


def test_all_that_a_run_on_a_disk_leaves_is_in_the_bucket(killed, place, store):
    left = {name.removeprefix("runs/killed/") for name in store.names("runs/killed/")}
    assert {name.partition("/")[0] for name in left} >= {path.name for path in (place / "whole").iterdir()} - {".lock"}
    assert ".lock" not in left, "given back at the end"
    assert any(name.startswith("profile/") and name.endswith(".xplane.pb") for name in left)
    assert sum(name.startswith("tensorboard/") for name in left) == 2, "one of each start"
    assert json.loads(store["runs/killed/config.json"])["values"]["TrainConfig.steps"] == 12


def test_the_command_looks_into_a_bucket(killed, store, capsys):
    run_dir = f"gs://{NAME}/runs/killed"
    assert checkpoints_command.main(["list", run_dir]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "4", "8", "12"]
    assert checkpoints_command.main(["verify", run_dir]) == 0
    assert capsys.readouterr().out.count("verified") == 3
    assert checkpoints_command.main(["diff", run_dir, "8", "8"]) == 0
    assert checkpoints_command.main(["diff", run_dir, "8", "12"]) == 1
    assert "optimizer/" in capsys.readouterr().out
    assert checkpoints_command.main(["list", f"gs://{NAME}/runs/other"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert checkpoints_command.main(["verify", "gs://another-bucket/runs/killed"]) == 2


def test_a_model_is_opened_from_a_bucket(killed, place, store):
    ours, theirs = open_model(f"gs://{NAME}/runs/killed"), open_model(place / "whole")
    assert (ours.config, ours.fingerprint) == (theirs.config, theirs.fingerprint)
    assert ours.vocabulary
    assert ours.path.name == "12"
    arrays = [flatten(saved.read(abstract_params(saved.config))) for saved in (ours, theirs)]
    assert {k: np.asarray(v).tobytes() for k, v in arrays[0].items()} == {
        k: np.asarray(v).tobytes() for k, v in arrays[1].items()
    }


def test_a_run_starts_from_a_model_in_a_bucket(killed, place, store):
    done = train(
        place,
        store,
        f"gs://{NAME}/runs/next",
        f"TrainConfig.init_from=gs://{NAME}/runs/killed",
        "TrainConfig.stop_at_step=1",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(store["runs/next/checkpoints/1/record.json"])
    assert record["about"]["start"]["origin"]["step"] == 12


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
    assert changes[written[-1]][1] == "10/record.json", "the record is written last"
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


@pytest.mark.parametrize("at", ["state/_sharding", "state/manifest.ocdbt", "record.json"])
def test_a_store_that_takes_no_more_fails_the_save_and_only_that(directory, store, at):
    with opened(directory) as checkpoints:
        save_all(checkpoints, 5)
        store.refuse = lambda method, name: 403 if method == "POST" and name.endswith(f"10/{at}") else None
        with pytest.raises(CheckpointError, match=r"step 10 is not saved: .*refused.*newest saved step is 5"):
            save_all(checkpoints, 10)
        store.refuse = lambda method, name: None
        save_all(checkpoints, 15)
        assert not below(directory, store, 10)
        assert checkpoints.latest()["step"] == 15


@pytest.fixture
def lock(store, request):
    """Makes locks of one directory; all are given back in the end."""
    run_dir, locks = run_path(f"gs://{NAME}/{place_of(request)}"), []

    def make(said=None, lost=pytest.fail):
        locks.append(StoreLock(run_dir, None, pytest.fail if said is None else said.append, lost))
        return locks[-1]

    yield make
    store.refuse = lambda method, name: None
    for made in locks:
        if made._thread.ident:
            made.release()


def lock_of(store, request, **changes) -> str:
    """Changes what the lock says, as nobody of this program does."""
    name = f"{place_of(request)}/.lock"
    store[name] = json.dumps(json.loads(store[name]) | changes).encode()
    return name


def test_a_second_run_is_refused_within_seconds_and_the_first_named(lock, store, request):
    lock().take()
    began = time.monotonic()
    with pytest.raises(RunDirectoryInUseError, match=rf"in use by another run \({ME}"):
        lock().take()
    assert time.monotonic() - began < 5
    with pytest.raises(RunDirectoryInUseError), owned(run_path(f"gs://{NAME}/{place_of(request)}"), None):
        raise AssertionError("not reached")


def test_a_lock_is_given_back(lock, store, request):
    first = lock()
    first.take()
    assert store.names(f"{place_of(request)}/")
    first.release()
    assert not store.names(f"{place_of(request)}/")
    lock().take()


@pytest.fixture
def impatient(monkeypatch):
    """Locks of which a second counts as a minute."""
    for name, seconds in {
        "STALE_SECONDS": 3.0,
        "_WATCH_SECONDS": 0.5,
        "_LOOK_SECONDS": 0.05,
        "_BEAT_SECONDS": 0.1,
    }.items():
        monkeypatch.setattr(store_lock, name, seconds)


def silent(lock, store, request, monkeypatch, **changes):
    """Leaves a lock without its holder; of another host, whose processes cannot be looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(StoreLock, "_beat", lambda self: None)
        first = lock(lost=lambda text: None)
        first.take()
    lock_of(store, request, **{"process": None, **changes})


def test_a_stale_lock_is_taken_over_with_a_line(lock, store, request, monkeypatch, impatient):
    silent(lock, store, request, monkeypatch, holder="pod-7, process 1", time=time.time() - 100)
    said: list[str] = []
    began = time.monotonic()
    lock(said).take()
    assert 0.5 <= time.monotonic() - began < 2, "watched a little, whatever the clocks say"
    (line,) = said
    assert line.endswith(f"{place_of(request)} is taken over: pod-7, process 1 has given no sign of life for 3 s")


@pytest.mark.parametrize("clock", [0.0, 1000.0, None])
def test_a_silent_lock_is_watched_before_it_is_taken_over(lock, store, request, monkeypatch, impatient, clock):
    """By the watcher's own clock: the holder's may be wrong, or not told."""
    silent(lock, store, request, monkeypatch, time=clock if clock is None else time.time() + clock)
    said: list[str] = []
    began = time.monotonic()
    lock(said).take()
    assert time.monotonic() - began >= 2.9
    assert len(said) == 2
    assert "is locked by a run that gives no sign of life" in said[0]


def test_a_sign_of_life_while_it_is_watched_is_believed(lock, store, request, monkeypatch, impatient):
    silent(lock, store, request, monkeypatch, time=time.time() - 0.2)

    def beat(key, *_):
        reads.append(key)
        if len(reads) == 20:
            lock_of(store, request, time=time.time())
        return read(key)

    second, reads = lock([]), []
    read = second._store.read
    second._store = type("Store", (), {"read": staticmethod(beat), "write": second._store.write})
    with pytest.raises(RunDirectoryInUseError):
        second.take()
    assert len(reads) >= 20


def test_the_lock_of_a_process_of_this_host_that_is_no_more_is_taken_over_at_once(lock, store, request):
    code = (
        "import os, sys; from deltalm_jax.training.store_lock import StoreLock;"
        "from deltalm_jax.training.storage import run_path;"
        "StoreLock(run_path(sys.argv[1]), None, print, print).take(); os._exit(0)"
    )
    run_dir = f"gs://{NAME}/{place_of(request)}"
    subprocess.run([sys.executable, "-c", code, run_dir], check=True, env=os.environ | {"PYTHONPATH": str(runs.ROOT)})
    said: list[str] = []
    began = time.monotonic()
    lock(said).take()
    assert time.monotonic() - began < 1
    assert said[0].endswith("is no more")


def test_of_two_that_take_over_one_wins(lock, store, request, monkeypatch, impatient):
    silent(lock, store, request, monkeypatch, time=time.time() - 100)
    said: list[str] = []
    second, third = lock(said), lock(said)
    write = second._store.write

    def late(*arguments, **options):
        if not third._thread.ident:
            third.take()
        return write(*arguments, **options)

    second._store = type("Store", (), {"read": second._store.read, "write": staticmethod(late)})
    with pytest.raises(RunDirectoryInUseError):
        second.take()


@pytest.mark.parametrize("how", ["taken over", "removed"])
def test_a_run_that_has_lost_its_lock_is_told_and_removes_nobody_elses(lock, store, request, impatient, how):
    lost: list[str] = []
    first = lock(lost=lost.append)
    first.take()
    name = lock_of(store, request, id="another", holder="pod-7, process 1")
    if how == "removed":
        del store.objects[name]
    deadline = time.monotonic() + 10
    while not lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert how in lost[0]
    assert how == "removed" or "pod-7, process 1" in lost[0]
    first.release()
    assert (name in store.objects) == (how == "taken over")


def test_a_store_that_is_away_for_a_while_costs_a_warning(lock, store, request, impatient, monkeypatch):
    monkeypatch.setattr(store_lock, "_RETRIES", {"gcs_request_retries": {"max_retries": 1, "initial_delay": "10ms"}})
    said: list[str] = []
    first = lock(said)
    first.take()
    store.refuse = lambda method, name: 503
    time.sleep(1)
    with pytest.raises(OSError, match="refused"):
        first.confirm()
    store.refuse = lambda method, name: None
    time.sleep(0.5)
    first.confirm()
    assert len(said) == 1
    assert "cannot be renewed" in said[0]


@pytest.mark.parametrize(
    ("status", "words"), [(403, "PERMISSION_DENIED.*roles/storage.objectUser"), (401, "refused"), (500, "refused")]
)
def test_a_store_that_refuses_is_an_error_soon(lock, store, status, words):
    store.refuse = lambda method, name: status
    began = time.monotonic()
    with pytest.raises(RunDirectoryError, match=rf"--run_dir=gs://{NAME}/\S+ cannot be used: .*{words}"):
        lock().take()
    assert time.monotonic() - began < 15


def test_a_bucket_that_is_not_there_is_named(store):
    with pytest.raises(
        RunDirectoryError, match=r"--run_dir=gs://no-such-bucket/run cannot be used: NOT_FOUND.*make it first"
    ):
        StoreLock(run_path("gs://no-such-bucket/run"), None, pytest.fail, pytest.fail).take()


def test_reading_refused_or_never_answered_is_an_error_soon(lock, store, request, monkeypatch):
    """The lock may be written, but nothing be listed: two clients, and two permissions."""
    run_dir = run_path(f"gs://{NAME}/{place_of(request)}")
    store.refuse = lambda method, name: 403 if method == "GET" and not name else None
    with pytest.raises(LocationError, match="cannot be read: Forbidden"), owned(run_dir, None):
        raise AssertionError("not reached")
    assert not store.names(f"{place_of(request)}/"), "the lock is given back"
    monkeypatch.setattr(storage, "_ANSWER_SECONDS", 1.0)
    store.refuse = lambda method, name: 503 if method == "GET" and not name else None
    with pytest.raises(LocationError, match="has not come in 1 s"), owned(run_dir, None):
        raise AssertionError("not reached")


def test_places_where_no_run_can_be(store):
    for url in ("s3://bucket/run", "memory://bucket/run", f"gs://{NAME}", f"gs://{NAME}/"):
        with pytest.raises(LocationError, match="a run is kept in a folder or in a bucket of Google Cloud Storage|s3"):
            run_path(url)


def test_a_second_run_by_the_command(place, store):
    run_dir = f"gs://{NAME}/runs/held"
    with owned(run_path(run_dir), None):
        refused = train(place, store, run_dir)
    assert refused.returncode == 2
    assert f"error: {run_dir} is in use by another run ({ME}" in refused.stderr
    assert not store.names("runs/held/")


def test_an_unreachable_bucket_or_missing_package_is_one_line(place, store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    nobody = {"TENSORSTORE_GCS_HTTP_URL": url, "STORAGE_EMULATOR_HOST": url}
    script = "import sys; sys.modules['gcsfs'] = None; from deltalm_jax.train import main; sys.exit(main(sys.argv[1:]))"
    start = runs.command(f"gs://{NAME}/runs/none", place / "data", *SHORT)
    commands = {"Could not connect to server": start, "install the extra gcs": [start[0], "-c", script, *start[3:]]}
    for words, command in commands.items():
        began = time.monotonic()
        done = subprocess.run(
            command, env=runs.environment(place / "cache") | store.environment | nobody, capture_output=True, text=True,
            timeout=100, cwd=place, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert words in line
        assert time.monotonic() - began < 60
        assert "step" not in done.stdout


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(place, store):
    """Each its own part; then one goes on alone."""
    run_dir = f"gs://{NAME}/runs/two"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            runs, "environment", lambda *a, real=runs.environment: real(*a) | store.environment
        )
        more = *SHORT, "TrainConfig.stop_at_step=8"
        processes = runs.run_processes(run_dir, place / "data", 2, *more, cache=place / "cache")
        for process in processes:
            out, _ = process.communicate(timeout=200)
            assert process.returncode == 0, out
    names = store.names("runs/two/checkpoints/8/")
    assert any("ocdbt.process_0" in name for name in names)
    assert any("ocdbt.process_1" in name for name in names)
    assert not [name for name in store.names("runs/two/") if "lock" in name]
    alone = train(place, store, run_dir)
    assert alone.returncode == 0, alone.stderr
    assert "resuming at step 8" in alone.stdout
    lines = [json.loads(line) for line in store["runs/two/metrics.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
