"""SLURM, played by stand-ins for its commands that hold one job of two tasks and really run it."""

from __future__ import annotations

import shlex
import time

import pytest

from tests.launch.stubs import DIFFICULT, Stubs, ok

# sbatch runs a copy of the script: nothing lies beside it.
SBATCH = """
import pathlib, shutil, subprocess
stubs = pathlib.Path(STUBS)
flags = [word for word in sys.argv[1:] if word.startswith("--")]
script = next(i for i, word in enumerate(sys.argv[1:], 1) if not word.startswith("--"))
if (stubs / "fail").exists():
    sys.exit("sbatch: error: Batch job submission failed")
shutil.copy(sys.argv[script], stubs / "slurm_script")
(stubs / "job").write_text("RUNNING")
output = next(flag.partition("=")[2] for flag in flags if flag.startswith("--output="))
variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
subprocess.Popen(
    [str(stubs / "slurm_script"), *sys.argv[script + 1:]], env=os.environ | variables, start_new_session=True,
    stdout=open(output, "a"), stderr=subprocess.STDOUT,
)
print("Submitted batch job 7")
"""
SRUN = """
import pathlib, subprocess
stubs = pathlib.Path(STUBS)
command = [word for word in sys.argv[1:] if not word.startswith("--kill")]
tasks = [subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(i)}) for i in range(2)]
(stubs / "tasks").write_text(json.dumps([task.pid for task in tasks]))
code = max(task.wait() for task in tasks)
if not (stubs / "requeue_allowed").exists():
    (stubs / "job").unlink(missing_ok=True)
sys.exit(code)
"""
SQUEUE = """
import pathlib
job = pathlib.Path(STUBS, "job")
if job.exists():
    print("7", job.read_text())
"""
SCANCEL = """
import pathlib, signal
stubs = pathlib.Path(STUBS)
if "--signal=TERM" in sys.argv:
    for pid in json.loads((stubs / "tasks").read_text()):
        os.kill(pid, signal.SIGTERM)
else:
    (stubs / "job").unlink()
"""
SCONTROL = """
import pathlib
allowed = pathlib.Path(STUBS, "requeue_allowed")
if sys.argv[1] == "update" and sys.argv[-1] == "Requeue=0":
    allowed.unlink(missing_ok=True)
elif sys.argv[1] == "requeue" and not allowed.exists():
    sys.exit("Requested operation is presently disabled for job 7")
"""

JOB = ["--name=pre train", "--poll_seconds=0"]
WHAT = ["--nodes=2", "--gpus_per_node=8", "--time=24:00:00"]
TRAINING = ["--", "--gin_file=pretrain_base.gin", *DIFFICULT]


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path / "stubs")
    for name, code in {
        "sbatch": SBATCH,
        "srun": SRUN,
        "squeue": SQUEUE,
        "scancel": SCANCEL,
        "scontrol": SCONTROL,
    }.items():
        stubs.add(name, code)
    (stubs.folder / "requeue_allowed").touch()
    yield stubs
    (stubs.folder / "exit_code").write_text("0")  # ends what still runs


def commands(stubs):
    return [call[0] for call in stubs.calls()]


def output(stubs, wanted):
    """The job's output, once it holds what is waited for."""
    deadline = time.monotonic() + 30
    while wanted not in (text := (stubs.folder / "pre train.log").read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
    return text


def test_each_task_gets_the_very_arguments(stubs):
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, "--env=VARIABLE=a  'b' $c", "--sbatch_flag=--mem=0", *TRAINING))
    for training in stubs.wait_for_trainings(2):
        assert training["arguments"] == ["-m", "deltalm_jax.train", "--coordinator=auto", *TRAINING[1:]]
        assert training["environment"]["VARIABLE"] == "a  'b' $c"
        assert "--xla_gpu_enable_latency_hiding_scheduler=true" in training["environment"]["XLA_FLAGS"].split()
        assert "JAX_LOCAL_DEVICE_IDS" not in training["environment"]
    (submit,) = stubs.calls("sbatch")
    assert {
        "--job-name=pre train", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=24:00:00", "--mem=0",
        "--signal=TERM@120", "--requeue",
    } <= set(submit)  # fmt: skip


def test_flags_that_the_user_has_set_win(stubs):
    theirs = "--xla_gpu_enable_latency_hiding_scheduler=false"
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING, XLA_FLAGS=theirs))
    assert stubs.wait_for_trainings(2)[0]["environment"]["XLA_FLAGS"] == theirs


def test_one_process_a_node_has_all_its_gpus(stubs):
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, "--tasks_per_node=1", *TRAINING))
    assert stubs.wait_for_trainings(1)[0]["environment"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7"
    done = stubs.run("slurm.sh", "run", *JOB, *WHAT, "--tasks_per_node=3", *TRAINING)
    assert done.returncode == 2
    assert "--tasks_per_node=3: expected 1, or as many as --gpus_per_node=8" in done.stderr


def test_run_leaves_a_job_alone(stubs):
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING))
    again = ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING))
    assert "job 7 RUNNING" in again.stderr
    assert commands(stubs).count("sbatch") == 1


def test_a_preempted_job_is_queued_again(stubs):
    (stubs.folder / "exit_code").write_text("75")
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING))
    output(stubs, "exit code 75")
    deadline = time.monotonic() + 10
    while not stubs.calls("scontrol") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stubs.calls("scontrol") == [["scontrol", "requeue", "7"]]


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_that_ended_otherwise_is_not(stubs, code):
    (stubs.folder / "exit_code").write_text(str(code))
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING))
    output(stubs, f"exit code {code}")
    time.sleep(0.2)
    assert stubs.calls("scontrol") == []


def test_stop_lets_it_save_and_not_queue_again(stubs):
    ok(stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING))
    stubs.wait_for_trainings(2)
    stubs.forget()
    ok(stubs.run("slurm.sh", "stop", *JOB))
    assert (stubs.folder / "saved").exists()
    assert "not queued again" in output(stubs, "not queued again")
    order = [call for call in stubs.calls() if call[0] in ("scontrol", "scancel")]
    assert order[:2] == [["scontrol", "update", "JobId=7", "Requeue=0"], ["scancel", "--signal=TERM", "7"]]
    again = ok(stubs.run("slurm.sh", "stop", *JOB))
    assert "no job pre train is queued or running" in again.stderr
    assert "exit code 75" in ok(stubs.run("slurm.sh", "logs", *JOB)).stdout


def test_stop_takes_a_job_that_waits_out_of_the_queue(stubs):
    (stubs.folder / "job").write_text("PENDING")
    ok(stubs.run("slurm.sh", "stop", *JOB))
    assert stubs.calls("scancel") == [["scancel", "7"]]


def test_a_refused_submission_is_an_error(stubs):
    (stubs.folder / "fail").touch()
    done = stubs.run("slurm.sh", "run", *JOB, *WHAT, *TRAINING)
    assert done.returncode == 1
    assert "Batch job submission failed" in done.stderr


def test_what_to_ask_for_must_be_said(stubs):
    done = stubs.run("slurm.sh", "run", *JOB, *TRAINING)
    assert done.returncode == 2
    assert "--gpus_per_node=… is missing" in done.stderr


def test_a_dry_run_prints_what_a_run_does(stubs):
    arguments = ["run", *JOB, *WHAT, "--partition=gpu", "--account=lab"]
    printed = ok(stubs.run("slurm.sh", *arguments, "--dry_run", *TRAINING)).stdout
    assert stubs.calls() == []
    ok(stubs.run("slurm.sh", *arguments, *TRAINING))
    assert shlex.split(printed) == [word for call in stubs.calls()[:2] for word in call]
    stop = ok(stubs.run("slurm.sh", "stop", *JOB, "--dry_run")).stdout
    assert "scancel --signal=TERM JOB" in stop
