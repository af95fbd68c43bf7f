"""A process that hangs, fails or is lost ends the run soon, and the others say which it was."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from deltalm_jax.errors import UserError
from deltalm_jax.training import peers as peers_module
from deltalm_jax.training.peers import Peers
from deltalm_jax.training.watchdog import Watchdog
from tests.support import runs
from tests.support.toy_data import write_toy_data

# From a fault to the end of the last process.
LIMIT = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("hangs")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


# The watchdog by itself.

WATCHED = """
import sys, threading, time
from deltalm_jax.training.watchdog import Watchdog
def waiting_for_nothing():
    time.sleep(60)
threading.Thread(target=waiting_for_nothing, daemon=True).start()
with Watchdog(float(sys.argv[1]), elsewhere=lambda: " elsewhere") as watchdog:
    for step in range(12):
        watchdog.phase(f"step {step}")
        time.sleep(0.25)
    watchdog.phase("save", 2.0)
    print("stands still", flush=True)
    time.sleep(float(sys.argv[2]))
print("done", flush=True)
"""


def watched(limit, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(limit), str(seconds)], env=runs.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_phase_that_lasts_too_long_ends_the_process_with_all_its_stacks():
    process = watched(1.0, 60)
    assert process.stdout.readline() == "stands still\n", "phases that go on do not add up"
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 70
    assert 1.9 < time.monotonic() - began < 6, "twice the limit was allowed"
    assert "waiting_for_nothing" in errors, "every thread's stack"
    assert re.search(rf"error: process {process.pid} on \S+ hangs: it has been at 'save' for 2 s", errors)
    assert "elsewhere" in errors


@pytest.mark.parametrize(("limit", "seconds"), [(1.0, 1.2), (0, 3)])
def test_a_phase_within_its_limit_goes_on(limit, seconds):
    out, errors = watched(limit, seconds).communicate(timeout=30)
    assert out.endswith("done\n"), errors


def test_time_in_which_the_process_is_stopped_does_not_count():
    process = watched(1.0, 1.0)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    out, errors = process.communicate(timeout=30)
    assert out == "done\n", errors


def test_a_phase_costs_next_to_nothing():
    with Watchdog(600.0) as watchdog:
        began = time.perf_counter()
        for step in range(10_000):
            watchdog.phase(f"step {step}")
        assert (time.perf_counter() - began) / 10_000 < 20e-6


# The watch over the others, over a store that is a dictionary.


class Ended(BaseException):
    """Raised where a process would end."""


class Store:
    """Records of a run whose processes are threads here."""

    def __init__(self, records, process_id, num_processes):
        self.records, self.process_id, self.num_processes = records, process_id, num_processes
        self.address, self.open = "nowhere:1", True

    def write(self, text):
        self._check()
        self.records[self.process_id] = text

    def read(self):
        self._check()
        return dict(self.records)

    def answers(self):
        return self.open

    def _check(self):
        if not self.open:
            raise RuntimeError("UNAVAILABLE")


@pytest.fixture
def ends(monkeypatch):
    """What processes end with, instead of ending."""
    ended = []

    def end_now(code, text=""):
        ended.append((code, text))
        raise Ended

    monkeypatch.setattr(peers_module, "end_now", end_now)
    monkeypatch.setattr(peers_module, "on_abort", lambda act: None)
    monkeypatch.setattr(peers_module.faulthandler, "dump_traceback", lambda *args, **more: None)
    monkeypatch.setattr(peers_module.jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    return ended


@pytest.fixture
def watch(ends):
    """Makes the watch of one process. All are over before `end_now` is itself again: what they end is this very process."""
    made = []

    def make(records, n, of=2, **more):
        settings = {"limit": 1.5, "suspicion": 0.8, "interval": 0.05, "grace": 0.3} | more
        made.append(Peers(Store(records, n, of), lambda: f"work {n}", **settings))
        return made[-1]

    yield make
    for peers in made:
        silence(peers)


def wait_for(condition, limit=20.0):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def silence(peers):
    peers._done.set()  # as if killed: it writes nothing more
    for thread in peers._threads:
        thread.join()


def test_a_silent_process_is_lost_after_the_limit_and_named(watch, ends):
    records = {}
    lost, left = watch(records, 1), watch(records, 0)
    lost.__enter__()
    left.__enter__()
    wait_for(lambda: "work 1" in left.elsewhere())
    time.sleep(2.0)
    assert not ends, "both were alive"
    silence(lost)
    began = time.monotonic()
    wait_for(lambda: ends)
    assert 1.0 < time.monotonic() - began < 6
    ((code, text),) = ends
    assert code == 70
    assert re.search(rf"process 1 \(\S+, pid {os.getpid()}\) has given no sign of life", text)


def test_a_process_that_never_gave_a_sign_is_lost(watch, ends):
    watch({}, 0).__enter__()
    wait_for(lambda: ends)
    assert "process 1 (nothing was heard of it)" in ends[0][1]


def test_an_unreachable_coordinator_is_named(watch, ends):
    peers = watch({}, 1).__enter__()
    peers._coordination.open = False
    wait_for(lambda: ends)
    assert "process 0" in ends[0][1]
    assert "nowhere:1" in ends[0][1]


@pytest.mark.parametrize(("error", "code"), [(UserError("no such folder"), 2), (RuntimeError("broken"), 1)])
def test_a_failure_ends_the_others_with_its_message(watch, ends, error, code):
    records = {}
    watch(records, 0).__enter__()
    with pytest.raises(Ended), watch(records, 1):
        raise error
    wait_for(lambda: len(ends) == 2)
    (own, trace), (others, text) = ends
    assert (own, others) == (code, 70)
    assert str(error) in trace
    assert re.search(rf"process 1 \(.*\) has failed: .*{error}", text)


def test_what_two_processes_find_at_once_each_says_itself(watch, ends):
    records = {}
    first, second = watch(records, 0, grace=5.0), watch(records, 1, grace=5.0)
    for peers in (first, second):
        peers.__enter__()
    for peers in (second, first):
        with pytest.raises(Ended):
            peers.__exit__(UserError, UserError("the same for both"), None)
        silence(peers)
    assert [code for code, _ in ends] == [2, 2]


def test_leaving_waits_for_the_others_and_is_no_failure(watch, ends):
    records = {}
    first, second = watch(records, 0), watch(records, 1)
    for peers in (first, second):
        peers.__enter__()
    leaving = threading.Thread(target=first.__exit__, args=(None, None, None))
    leaving.start()
    leaving.join(3.0)
    assert leaving.is_alive(), "the other one is still at work"
    second.__exit__(None, None, None)
    leaving.join(5.0)
    assert not leaving.is_alive()
    assert not ends


def test_third_parties_name_the_process_that_was_lost_and_not_the_one_that_found_out(watch, ends):
    records = {}
    found, told = watch(records, 1, of=3), watch(records, 2, of=3, limit=60.0)
    found.__enter__()
    told.__enter__()
    wait_for(lambda: len(ends) == 2)
    assert all("process 0 (nothing was heard of it) has given no sign" in text for _, text in ends)


# Whole runs.


def run_with(place, name, faults, *more, processes=2, stopped=0):
    """Starts a run whose faults end all its processes but those stopped, within LIMIT. Returns exit codes and outputs."""
    run_dir = place / name
    if processes == 1:
        command = runs.command(run_dir, place / "data", *more, faults=faults)
        started = [
            subprocess.Popen(
                command, env=runs.environment(), cwd=place, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        ]  # fmt: skip
    else:
        started = runs.run_processes(run_dir, place / "data", processes, *more, faults=faults)
    fault, texts = [], [""] * processes

    def read(i):
        for line in started[i].stdout:
            texts[i] += line
            if line.startswith("injected"):
                fault.append(time.monotonic())

    readers = [threading.Thread(target=read, args=(i,)) for i in range(processes)]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + 240
    while time.monotonic() < min(deadline, fault[0] + LIMIT if fault else deadline):
        if sum(p.poll() is not None for p in started) == processes - stopped:
            break
        time.sleep(0.05)
    codes = [p.poll() for p in started]
    for process in started:
        process.kill()
    for reader in readers:
        reader.join()
    assert fault, "\n".join(texts)
    return codes, texts


@pytest.mark.parametrize("fault", ["hang@0:3:step", pytest.param("hang@0:3:batch", marks=pytest.mark.slow)])
def test_a_run_that_hangs_shows_where_and_ends(place, fault):
    codes, (text,) = run_with(place, fault.replace(":", "-"), [fault], "TrainConfig.hang_limit=10.0", processes=1)
    assert codes == [70], text
    assert "happen" in text, "the stack of the thread that hangs"
    assert re.search(r"error: process \(\S+, pid \d+\) hangs: it has been at 'step \d' for 1\d s", text)


@pytest.mark.parametrize(
    ("fault", "lost", "codes"),
    [
        ("kill@1:7:step", 1, [70, -9]),
        pytest.param("kill@0:7:step", 0, [-9, 70], marks=pytest.mark.slow),
        pytest.param("kill@1:5:save/written", 1, [70, -9], marks=pytest.mark.slow),
        pytest.param("kill@1:*:start", 1, [70, -9], marks=pytest.mark.slow),
        pytest.param("stop@1:7:step", 1, [70, None], marks=pytest.mark.slow),
        pytest.param("stop@0:7:step", 0, [None, 70], marks=pytest.mark.slow),
    ],
)
def test_a_process_killed_or_stopped_ends_the_other_which_names_it(place, fault, lost, codes):
    found, texts = run_with(place, fault.replace(":", "-").replace("/", "-"), [fault], stopped=codes.count(None))
    assert found == codes, "\n".join(texts)
    last = re.search(
        rf"error: process {1 - lost} \(.*\) ends because of another: process {lost} \(\S+, pid \d+\)", texts[1 - lost]
    )
    assert last, texts[1 - lost]
    assert "Started again, the run goes on from its newest checkpoint." in texts[1 - lost][last.start() :]


@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        ("raise@1:7:step", 1),
        pytest.param("raise@0:7:step", 0, marks=pytest.mark.slow),
        pytest.param("raise@1:7:batch", 1, marks=pytest.mark.slow),
        # A save of the others has begun, which waits for the one that failed.
        pytest.param("raise@1:5:save/begin", 1, marks=pytest.mark.slow),
    ],
)
def test_an_exception_in_one_process_ends_both(place, fault, failed):
    codes, texts = run_with(place, fault.replace(":", "-").replace("/", "-"), [fault])
    assert codes[failed] == 1, texts[failed]
    assert codes[1 - failed] == 70, texts[1 - failed]
    assert "RuntimeError: a fault was injected here" in texts[failed]
    assert re.search(
        rf"process {failed} \(\S+, pid \d+\) has failed: RuntimeError: a fault was injected here", texts[1 - failed]
    )


@pytest.mark.slow
def test_a_process_that_hangs_ends_both(place):
    codes, texts = run_with(place, "hang", ["hang@1:7:step"], "TrainConfig.hang_limit=20.0")
    assert codes == [70, 70], "\n".join(texts)
    assert "hangs: it has been at 'step 7'" in texts[1]
    assert re.search(r"process 0 \(.*\) is at 'step \d+'", texts[1])


@pytest.mark.parametrize("where", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_data_missing_on_one_host_end_all_before_devices_are_used(place, where):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    began = time.monotonic()
    started = [
        subprocess.Popen(
            runs.command(
                place / f"missing-{where}", place / ("nothing" if i == where else "data"), f"--coordinator={address}",
                "--num_processes=2", f"--process_id={i}",
            ),
            env=runs.environment(), cwd=place, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        texts = [p.communicate(timeout=LIMIT)[0] for p in started]
    finally:
        for process in started:
            process.kill()
    assert time.monotonic() - began < LIMIT
    assert [p.returncode for p in started] == [2 if i == where else 70 for i in range(2)], "\n".join(texts)
    assert "error: no prepared data in" in texts[where]
    assert re.search(rf"process {where} \(\S+, pid \d+\) has failed: no prepared data in", texts[1 - where])
    assert not list((place / f"missing-{where}").glob("checkpoints/*"))


@pytest.mark.slow
def test_a_run_of_two_started_twice_is_refused_and_goes_on(place):
    """With the same address: the second start must not reach the first one's coordinator, which would end both."""
    run_dir, more = place / "twice", ("TrainConfig.steps=100000", "TrainConfig.eval_every=0")
    first = runs.run_processes(run_dir, place / "data", 2, *more)
    second = []
    try:
        wait_for(lambda: len(runs.metrics(run_dir)) > 3, 120)
        began = time.monotonic()
        for process in first:  # the very same command lines
            second.append(
                subprocess.Popen(
                    process.args,
                    env=runs.environment(),
                    cwd=place,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        texts = [p.communicate(timeout=60)[0] for p in second]
        assert [p.returncode for p in second] == [2, 2], "\n".join(texts)
        assert all("is in use by another run" in text for text in texts)
        assert time.monotonic() - began < 15
        before = len(runs.metrics(run_dir))
        wait_for(lambda: len(runs.metrics(run_dir)) > before + 3, 60)
        first[1].send_signal(signal.SIGTERM)
        assert [p.wait(60) for p in first] == [75, 75]
    finally:
        for process in (*first, *second):
            process.kill()
            process.communicate()
