"""The lock of a run directory in a bucket: who is refused, who waits, who takes over, and how soon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from deltalm_jax.paths import LocationError
from deltalm_jax.training import storage, store_lock
from deltalm_jax.training.ownership import owned
from deltalm_jax.training.storage import RunDirectoryError, RunDirectoryInUseError, run_path
from deltalm_jax.training.store_lock import StoreLock
from tests.support import runs
from tests.support.bucket_server import bucket_for_all, place_of

NAME = "bucket-of-locks"
ME = f"{socket.gethostname()}, process {os.getpid()}"


@pytest.fixture(scope="module")
def store():
    with bucket_for_all(NAME) as served:
        yield served


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
