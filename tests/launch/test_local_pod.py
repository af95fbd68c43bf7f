"""The pod of this machine's processors, for real: it trains, is told to stop, goes on, and is told before its first step."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from tests.launch.stubs import LAUNCH, Stubs
from tests.support import runs
from tests.support.toy_data import write_toy_data

STEPS = 100_000  # never reached


class Pod:
    """Two processes of two devices, on toy data."""

    def __init__(self, place):
        self.place, self.run_dir = place, place / "run"
        write_toy_data(place / "data", {"cc100_a": runs.TOY_TASKS["cc100_a"]}, shards=2)
        more = f"TrainConfig.steps={STEPS}", "TrainConfig.eval_every=0", "TrainConfig.checkpoint_every=100000"
        one = "DataConfig.objective_batch_sizes={'span_corruption': 8}"  # objective: half the compilation
        python, *_ = command = runs.command(self.run_dir, place / "data", *more, one, "MeshConfig.fsdp=2")
        quickly = "--xla_backend_optimization_level=0"  # compiled, not well
        self.environment = runs.environment() | {"PYTHON": python, "XLA_FLAGS": quickly}
        self.arguments = ["--processes=2", "--devices=2", f"--dir={place / 'pod'}", "--", *command[3:]]

    def begin(self, verb: str) -> subprocess.Popen:
        return subprocess.Popen(
            [LAUNCH / "local_pod.sh", verb, *self.arguments], env=self.environment, cwd=self.place, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def do(self, verb: str) -> str:
        process = self.begin(verb)
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
        return out

    def wait_for(self, condition) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < deadline, (self.place / "pod" / "0" / "log").read_text()
            time.sleep(0.1)

    def saved(self) -> list[int]:
        return sorted(int(path.name) for path in (self.run_dir / "checkpoints").iterdir())


def test_a_pod_trains_stops_and_goes_on(tmp_path):
    pod = Pod(tmp_path)
    launcher = pod.begin("run")
    try:
        pod.wait_for(lambda: len(runs.metrics(pod.run_dir)) >= 3)
        assert "running already" in pod.do("start")
        assert pod.do("status").count(": running") == 2
        launcher.send_signal(signal.SIGTERM)
        out, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == 75, out
        assert "on 4 cpu device(s), 2 process(es)" in out
        (first,) = pod.saved()
        assert runs.metrics(pod.run_dir)[-1]["step"] == first
        assert pod.do("status").count("ended with exit code 75") == 2

        # Detached; and stopped as soon as it has the checkpoint, while it still compiles.
        pod.do("start")
        pod.wait_for(lambda: f"resuming at step {first:,} of" in pod.do("logs"))
        pod.do("stop")
        assert pod.do("status").count("ended with exit code 75") == 2
        assert pod.saved()[-1] > first
    finally:
        launcher.kill()
        subprocess.run([LAUNCH / "local_pod.sh", "stop", f"--dir={tmp_path / 'pod'}", "--stop_seconds=30"], check=False)


def test_a_dry_run_names_every_process(tmp_path):
    stubs = Stubs(tmp_path / "stubs")
    done = stubs.run("local_pod.sh", "run", "--processes=3", "--devices=4", "--dry_run", "--", "--gin.A.b=it's")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"--process_id=(\d)", done.stdout) == ["0", "1", "2"]
    assert done.stdout.count("--xla_force_host_platform_device_count=4") == 3
    assert not (tmp_path / "stubs" / "runs").exists()


@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_is_the_trainings(tmp_path, code):
    stubs = Stubs(tmp_path / "stubs")
    (stubs.folder / "exit_code").write_text(str(code))
    done = stubs.run("local_pod.sh", "run", "--", "--gin_file=x", XLA_FLAGS="--xla_theirs=1")
    assert done.returncode == code, done.stderr
    assert "training\n" in done.stdout
    (flags,) = {training["environment"]["XLA_FLAGS"] for training in stubs.trainings()}
    assert flags == "--xla_theirs=1 --xla_force_host_platform_device_count=2"


def test_job_outlives_what_started_it_and_runs_once(tmp_path):
    """What all of this rests on: `job.sh`."""
    job = [LAUNCH / "job.sh"]

    def do(*arguments, code=0):
        done = subprocess.run([*job, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    folder = tmp_path / "job"
    assert "not started" in do("status", folder)
    words = "trap 'echo noticed; exit 75' TERM; echo \"<$1>\"; while true; do sleep 0.05; done"
    do("start", folder, "bash", "-c", words, "bash", "a  'b'\n$c")
    pid = int((folder / "pid").read_text())
    assert os.getsid(pid) != os.getsid(0)
    assert "running already" in do("start", folder, "false")
    do("running", folder)
    assert "ended with exit code 75" in do("stop", folder, 20)
    log = do("log", folder, 10)
    assert "<a  'b'" in log
    assert "$c>" in log
    assert "noticed" in log
    do("running", folder, code=1)
    do("start", folder, "bash", "-c", "trap '' TERM; sleep 5")
    assert "still running 1 seconds after SIGTERM" in subprocess.run(
        [*job, "stop", folder, "1"], capture_output=True, text=True, check=False
    ).stderr  # fmt: skip
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
