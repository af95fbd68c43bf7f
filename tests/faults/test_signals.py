"""SIGTERM and SIGINT at any time of a run's life: it ends soon, with its exit code, and says how to go on."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from deltalm_jax.training.faults import Stopped, StopRequest
from tests.support import runs
from tests.support.toy_data import write_toy_data

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("signals")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


def start(command, place):
    return subprocess.Popen(
        command, env=runs.environment(), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def steps_saved(run_dir):
    return sorted(int(path.parent.name) for path in run_dir.glob("checkpoints/*/record.json"))


def lines_until(process, text, limit=120.0):
    """Reads a process's output until a line holds the text."""
    timer = threading.Timer(limit, process.kill)
    timer.start()
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            timer.cancel()
            return seen
    raise AssertionError(f"{text!r} was not printed:\n{''.join(seen)}")


@pytest.mark.parametrize(
    ("fault", "more", "saved"),
    [
        # The thread that makes batches starts when the step is about to be compiled.
        ("term@0:1:batch", (), 1),
        pytest.param("int@0:1:batch", (), 1, marks=pytest.mark.slow),
        pytest.param("term@0:3:evaluate", ("TrainConfig.eval_every=3",), 4, marks=pytest.mark.slow),
        ("int@0:3:evaluate", ("TrainConfig.eval_every=3",), 4),
        ("term@0:4:save/begin", ("TrainConfig.checkpoint_every=4",), 5),
        pytest.param("int@0:4:save/begin", ("TrainConfig.checkpoint_every=4",), 5, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_training_saves_at_the_next_boundary(place, fault, more, saved):
    run_dir = place / fault.replace("/", "-").replace(":", "-")
    done = runs.run(run_dir, place / "data", "TrainConfig.checkpoint_every=1000", *more, faults=[fault])
    name = "SIGINT" if fault.startswith("int") else "SIGTERM"
    assert done.returncode == CODES[signal.Signals[name]], done.stderr
    assert f"{name}: stopped after step {saved}, checkpoint saved" in done.stdout
    assert steps_saved(run_dir)[-1] == saved == runs.metrics(run_dir)[-1]["step"]
    assert "to go on:\n  python -m deltalm_jax.train" in done.stdout


@pytest.mark.parametrize(
    ("fault", "code"), [("term@0:*:restore", 75), pytest.param("int@0:*:restore", 130, marks=pytest.mark.slow)]
)
def test_a_signal_while_restoring_stops_before_the_step_is_compiled(place, fault, code):
    run_dir = place / f"restored-{code}"
    assert runs.run(run_dir, place / "data", "TrainConfig.stop_at_step=2").returncode == 0
    before = (run_dir / "metrics.jsonl").read_bytes()
    done = runs.run(run_dir, place / "data", faults=[fault])
    assert done.returncode == code, done.stderr
    assert "stopped before step 3; nothing is lost" in done.stdout
    assert "first step done" not in done.stdout
    assert "to go on:" in done.stdout
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert steps_saved(run_dir) == [2]


def test_a_second_ctrl_c_is_obeyed_and_the_checkpoint_is_whole(place):
    run_dir = place / "impatient"
    done = runs.run(
        run_dir, place / "data", "TrainConfig.checkpoint_every=1000",
        faults=["int@0:3:step", "int@0:3:close"],
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "interrupted; what was saved before is kept" in done.stderr
    assert "Traceback" not in done.stderr
    again = runs.run(run_dir, place / "data", "TrainConfig.stop_at_step=4")
    assert again.returncode == 0, again.stderr
    assert "passed over" not in again.stdout


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_while_preparing_ends_the_preparation_too_and_the_same_command_goes_on(place, sent):
    prepared = place / f"prepared-{sent.name}"
    command = runs.command(place / f"run-{sent.name}", prepared, "TrainConfig.stop_at_step=1")
    process = start(command, place)
    try:
        lines_until(process, "tasks,")  # the preparation's first line
        began = time.monotonic()
        process.send_signal(sent)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == CODES[sent], out
    assert time.monotonic() - began < 30
    assert f"{sent.name}: stopped before the first step; nothing is lost" in out
    assert not processes_with(str(prepared)), "the preparation goes on by itself"
    assert not (prepared / "manifest.json").exists()
    if sent == signal.SIGTERM:
        told = shlex.split(out.partition("to go on:\n")[2])
        again = subprocess.run(
            [sys.executable, *told[1:]], env=runs.environment(), cwd=place, timeout=300, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert again.returncode == 0, again.stderr
        assert (prepared / "manifest.json").exists()


def processes_with(text):
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_while_the_other_processes_are_waited_for_ends_the_process(place, sent):
    command = runs.command(
        place / f"alone-{sent.name}", place / "data", "--coordinator=127.0.0.1:1", "--num_processes=2",
        "--process_id=1",
    )  # fmt: skip
    script = (
        "import sys, deltalm_jax.parallel.mesh as mesh; join = mesh.initialize_processes;"
        "mesh.initialize_processes = lambda *a: (print('joining', flush=True), join(*a));"
        "from deltalm_jax.train import main; sys.exit(main(sys.argv[1:]))"
    )
    process = start([command[0], "-c", script, *command[3:]], place)
    try:
        lines_until(process, "joining")
        time.sleep(1.0)  # it is in jax by now, which does not come back to Python
        process.send_signal(sent)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == CODES[sent], out
    assert f"{sent.name}: stopped before the first step; nothing is lost" in out


def test_processes_that_do_not_come_are_missed_by_name(place):
    command = runs.command(
        place / "missing", place / "data", "--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1"
    )
    script = (
        "import sys, deltalm_jax.parallel.mesh as mesh; mesh.JOIN_SECONDS = 2;"
        "from deltalm_jax.train import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [command[0], "-c", script, *command[3:]], env=runs.environment(), cwd=place, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    assert "have not come together in 2 s: process 0 is missing: nothing answers at 127.0.0.1:1" in done.stderr


class TestStopRequest:
    """What needs no run."""

    def test_before_training_a_signal_raises_and_afterwards_it_is_noted(self):
        previous = signal.getsignal(signal.SIGTERM)
        with StopRequest() as stop_request:
            with pytest.raises(Stopped, match="SIGTERM") as stopped:
                signal.raise_signal(signal.SIGTERM)
            assert stopped.value.exit_code == 75
        assert signal.getsignal(signal.SIGTERM) is previous
        with StopRequest() as stop_request:
            stop_request.train_from_here(several=False)
            assert not stop_request.at_boundary()
            signal.raise_signal(signal.SIGINT)
            assert stop_request.at_boundary()
            assert stop_request.exit_code == 130
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    def test_a_command_gets_the_signal_and_its_end_is_waited_for(self, tmp_path):
        code = (
            "import pathlib, sys, time\n"
            "try:\n"
            "    pathlib.Path(sys.argv[1], 'ready').touch(); time.sleep(60)\n"
            "except KeyboardInterrupt:\n"
            "    time.sleep(1); pathlib.Path(sys.argv[1], 'tidied').touch(); sys.exit(130)\n"
        )

        def send():
            while not (tmp_path / "ready").exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send, daemon=True).start()
        with StopRequest() as stop_request, pytest.raises(Stopped) as stopped:
            stop_request.run([sys.executable, "-c", code, str(tmp_path)])
        assert (tmp_path / "tidied").exists()
        assert stopped.value.exit_code == 75

    def test_a_command_that_ends_by_itself_gives_its_exit_code(self):
        with StopRequest() as stop_request:
            assert stop_request.run([sys.executable, "-c", "import sys; sys.exit(3)"]) == 3


def two_with(place, name, *faults, more=()):
    """Runs two processes to their end; returns exit codes and outputs."""
    started = runs.run_processes(
        place / name,
        place / "data",
        2,
        "TrainConfig.checkpoint_every=1000",
        *more,
        faults=faults,
    )
    deadline = time.monotonic() + 200
    try:
        texts = [p.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for p in started]
    finally:
        for process in started:
            process.kill()
    return [p.returncode for p in started], texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "more", "code"),
    [
        ("term@1:1:batch", (), 75),
        ("int@0:1:batch", (), 130),
        ("term@0:3:evaluate", ("TrainConfig.eval_every=3",), 75),
        ("term@1:4:save/begin", ("TrainConfig.checkpoint_every=4",), 75),
    ],
)
def test_a_signal_to_one_of_two_at_any_time_stops_both_at_one_step(place, fault, more, code):
    name = f"two-{fault.replace('/', '-').replace(':', '-')}"
    codes, texts = two_with(place, name, fault, more=more)
    # The process that had Ctrl-C says so; to the other one it is a request like any.
    assert sorted(codes) == sorted([75, code]), "\n".join(texts)
    saved = steps_saved(place / name)[-1]
    assert runs.metrics(place / name)[-1]["step"] == saved < 40
    assert [json.loads(path.read_text())["step"] for path in (place / name).glob(f"checkpoints/{saved}/record.json")]


@pytest.mark.slow
def test_a_signal_to_one_of_two_while_restoring_stops_both_at_once(place):
    """Before a step, or, if the other one had gone on already, after one."""
    run_dir = place / "two-restored"
    assert runs.run(run_dir, place / "data", "TrainConfig.stop_at_step=2").returncode == 0
    codes, texts = two_with(place, "two-restored", "term@1:*:restore")
    assert codes == [75, 75], "\n".join(texts)
    if "stopped before step 3; nothing is lost" in texts[0]:
        assert steps_saved(run_dir) == [2]
    else:
        assert "stopped after step 3, checkpoint saved" in texts[0]
        assert steps_saved(run_dir)[-1] == 3
