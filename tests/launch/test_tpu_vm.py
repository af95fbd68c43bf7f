"""Cloud TPU VMs, played by a stand-in for gcloud whose workers are folders, where remote commands really run."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.launch.stubs import DIFFICULT, Stubs, ok

# States are played from the file `states`: each look takes one off, and the last one stays.
GCLOUD = """
import pathlib, shutil, subprocess
stubs = pathlib.Path(STUBS)
states = stubs / "states"
_, _, _, group, verb, *rest = sys.argv
flags = dict(a.removeprefix("--").partition("=")[::2] for a in rest if a.startswith("--"))
if (stubs / "fail").exists() and (stubs / "fail").read_text() == verb:
    sys.exit("ERROR: (gcloud) no")
node = rest[1].split(":")[0] if verb == "scp" else rest[0]
homes = [stubs / f"home-{node}-{worker}" for worker in range(2)]
if verb == "list":
    left = json.loads(states.read_text()) if states.exists() else [""]
    print(left[0])
    states.write_text(json.dumps(left[1:] or left))
elif verb == "create":
    after = stubs / "after_create"
    states.write_text(after.read_text() if after.exists() else json.dumps(["CREATING", "READY"]))
elif verb == "delete":
    (stubs / "saved_before_delete").write_text(str((stubs / "saved").exists()))
    states.write_text(json.dumps([""]))
    for home in stubs.glob("home-*"):
        shutil.rmtree(home)
    if (stubs / "next_exit_code").exists():
        (stubs / "next_exit_code").rename(stubs / "exit_code")
elif verb == "scp":
    for home in homes:
        home.mkdir(exist_ok=True)
        shutil.copy(rest[0], home / rest[1].split(":")[1])
elif verb == "ssh":
    chosen = homes if flags["worker"] == "all" else [homes[int(flags["worker"])]]
    env = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    codes = [subprocess.run(["sh", "-c", flags["command"]], cwd=home, env=env).returncode for home in chosen]
    sys.exit(max(codes))
"""
# uv makes environments whose python trains nothing.
UV = """
import pathlib
if sys.argv[1] == "venv":
    python = pathlib.Path(sys.argv[-1], "bin", "python")
    python.parent.mkdir(parents=True)
    python.symlink_to(pathlib.Path(STUBS, "bin", "training_python"))
"""

WHERE = ["--zone=europe-west4-b", "--project=project"]
ONE = ["--name=pod", "--type=v5litepod-8", "--version=v2-alpha-tpuv5-lite", *WHERE, "--poll_seconds=0"]
TRAINING = ["--", "--gin_file=pretrain_base.gin", "--run_dir=/shared/run", *DIFFICULT]


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path / "stubs")
    stubs.add("gcloud", GCLOUD)
    stubs.add("uv", UV)
    yield stubs
    (stubs.folder / "exit_code").write_text("0")  # ends what still runs


def play(stubs, *states, after_create=None):
    (stubs.folder / "states").write_text(json.dumps(states))
    if after_create:
        (stubs.folder / "after_create").write_text(json.dumps(after_create))


def verbs(stubs):
    return [call[4] for call in stubs.calls("gcloud")]


def test_run_makes_the_tpu_installs_and_starts_the_training_with_the_very_arguments(stubs):
    ok(stubs.run("tpu_vm.sh", "run", *ONE, "--spot", "--env=VARIABLE=a  'b' $c", *TRAINING))
    assert verbs(stubs) == ["list", "create", "list", "list", "scp", "ssh", "ssh"]
    (create,) = stubs.calls("gcloud", "compute", "tpus", "tpu-vm", "create")
    assert create[5:] == ["pod", *WHERE, "--accelerator-type=v5litepod-8", "--spot", "--version=v2-alpha-tpuv5-lite"]
    for training in stubs.wait_for_trainings(2):  # one a worker
        assert training["arguments"] == ["-m", "deltalm_jax.train", "--coordinator=auto", *TRAINING[1:]]
        assert training["environment"]["VARIABLE"] == "a  'b' $c"


def test_run_again_leaves_a_training_alone(stubs):
    ok(stubs.run("tpu_vm.sh", "run", *ONE, *TRAINING))
    stubs.wait_for_trainings(2)
    stubs.forget()
    again = ok(stubs.run("tpu_vm.sh", "run", *ONE, *TRAINING))
    assert "create" not in verbs(stubs)
    assert stubs.trainings() == []
    assert again.stdout.count("running already") == 2
    assert again.stdout.count("nothing is installed under it") == 2


@pytest.mark.parametrize(
    ("queued", "gone", "ready"),
    [([], "PREEMPTED", "READY"), (["--queued"], "SUSPENDED", "ACTIVE"), (["--queued"], "FAILED", "ACTIVE")],
)
def test_what_was_taken_away_is_given_back_and_asked_for_anew(stubs, queued, gone, ready):
    play(stubs, gone, after_create=["WAITING_FOR_RESOURCES", "PROVISIONING", ready])
    ok(stubs.run("tpu_vm.sh", "create", *ONE, *queued))
    assert verbs(stubs) == ["list", "delete", "list", "create", "list", "list", "list"]
    (delete,) = [call for call in stubs.calls("gcloud") if call[4] == "delete"]
    assert ("--force" in delete) == bool(queued)


def test_a_request_that_fails_again_is_not_repeated_for_ever(stubs):
    play(stubs, "", after_create=["FAILED"])
    done = stubs.run("tpu_vm.sh", "create", *ONE, "--queued")
    assert done.returncode == 2
    assert "gcloud compute tpus queued-resources describe pod" in done.stderr
    assert verbs(stubs).count("create") == 1


@pytest.mark.parametrize(
    ("flag", "part"),
    [("--name=Pod 1", "--name=Pod 1: expected a-z"), ("--slices=two", "--slices=two: expected a number")],
)
def test_mistakes_are_named_before_anything_is_asked_for(stubs, flag, part):
    done = stubs.run("tpu_vm.sh", "run", *ONE, flag, *TRAINING)
    assert done.returncode == 2
    assert part in done.stderr
    assert stubs.calls() == []


def test_two_slices_are_one_request(stubs):
    play(stubs, "", after_create=["ACTIVE"])
    ok(stubs.run("tpu_vm.sh", "run", *ONE, "--slices=2", "--create_flag=--network=mtu 9k", *TRAINING))
    (create,) = stubs.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert create[8:] == [
        "--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--node-count=2", "--node-prefix=pod",
        "--network=mtu 9k",
    ]  # fmt: skip
    assert [call[5] for call in stubs.calls("gcloud", "compute", "tpus", "tpu-vm", "ssh")] == ["pod-0", "pod-1"] * 2
    stubs.wait_for_trainings(4)


def test_stop_sends_sigterm_and_status_and_logs_tell(stubs):
    ok(stubs.run("tpu_vm.sh", "run", *ONE, *TRAINING))
    stubs.wait_for_trainings(2)
    assert "running" in ok(stubs.run("tpu_vm.sh", "status", *ONE)).stdout
    ok(stubs.run("tpu_vm.sh", "stop", *ONE))
    assert (stubs.folder / "saved").exists()
    status = ok(stubs.run("tpu_vm.sh", "status", *ONE)).stdout
    assert status.startswith("pod: READY\n")
    assert status.count("ended with exit code 75") == 2
    assert ok(stubs.run("tpu_vm.sh", "logs", *ONE)).stdout.count(": training\n") == 1
    assert ok(stubs.run("tpu_vm.sh", "logs", *ONE, "--worker=all")).stdout.count(": training\n") == 2
    play(stubs, "")
    assert ok(stubs.run("tpu_vm.sh", "status", *ONE)).stdout == "pod: there is none\n"


def test_delete_stops_first(stubs):
    ok(stubs.run("tpu_vm.sh", "run", *ONE, *TRAINING))
    stubs.wait_for_trainings(2)
    ok(stubs.run("tpu_vm.sh", "delete", *ONE))
    assert (stubs.folder / "saved_before_delete").read_text() == "True"
    stubs.forget()
    ok(stubs.run("tpu_vm.sh", "delete", *ONE))  # again: nothing is left to do
    assert verbs(stubs) == ["list"]


def test_what_cannot_be_stopped_is_deleted_only_by_force(stubs):
    play(stubs, "READY")
    (stubs.folder / "fail").write_text("ssh")
    done = stubs.run("tpu_vm.sh", "delete", *ONE)
    assert done.returncode == 2
    assert "could not be stopped" in done.stderr
    assert "delete" not in verbs(stubs)
    ok(stubs.run("tpu_vm.sh", "delete", *ONE, "--force"))
    assert "delete" in verbs(stubs)


@pytest.mark.parametrize("verb", ["list", "create", "scp", "ssh"])
def test_a_command_that_fails_ends_the_run(stubs, verb):
    (stubs.folder / "fail").write_text(verb)
    done = stubs.run("tpu_vm.sh", "run", *ONE, *TRAINING)
    assert done.returncode != 0
    assert "(gcloud) no" in done.stderr
    assert verbs(stubs)[-1] == verb
    assert stubs.trainings() == []


def test_a_dry_run_prints_what_a_run_does(stubs):
    arguments = ["run", *ONE, "--setup=mountpoint -q /data || echo 'mounted'", *TRAINING]
    printed = ok(stubs.run("tpu_vm.sh", *arguments[: -len(TRAINING)], "--dry_run", *TRAINING)).stdout
    assert stubs.calls() == []
    play(stubs, "", after_create=["READY"])
    ok(stubs.run("tpu_vm.sh", *arguments))
    # Words are compared, since a quoted word may hold line breaks. git and tar are not stand-ins.
    words = ["/ARCHIVE" if word.endswith("/deltalm_jax.tar.gz") else word for word in shlex.split(printed)]
    packing = words.index("bash")
    del words[packing : words.index("gcloud", packing)]
    called = [word for call in stubs.calls("gcloud") for word in call]
    assert words == ["/ARCHIVE" if word.endswith("/deltalm_jax.tar.gz") else word for word in called]


class TestKeep:
    def test_trains_on_after_a_preemption_until_the_training_is_done(self, stubs):
        (stubs.folder / "exit_code").write_text("75")
        (stubs.folder / "next_exit_code").write_text("0")
        # The request is suspended when the second run looks.
        play(stubs, "", after_create=["ACTIVE", "SUSPENDED"])
        done = ok(stubs.run("tpu_vm.sh", "keep", *ONE, "--queued", "--spot", *TRAINING))
        assert verbs(stubs).count("create") == 2
        assert "ended with exit code 75" in done.stderr
        assert "ended with exit code 0" in done.stderr
        assert [t["arguments"] for t in stubs.wait_for_trainings(4)].count(
            ["-m", "deltalm_jax.train", "--coordinator=auto", *TRAINING[1:]]
        ) == 4  # fmt: skip

    def test_ends_with_an_error_of_the_training(self, stubs):
        (stubs.folder / "exit_code").write_text("2")
        done = stubs.run("tpu_vm.sh", "keep", *ONE, *TRAINING)
        assert done.returncode == 2
        assert "the training ended with an error" in done.stderr
        # It watches the first worker alone: the other may write its note a moment later.
        assert len(stubs.wait_for_trainings(2)) == 2
