"""GKE, played by a stand-in for kubectl that holds one JobSet and really runs the first pod's command."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.launch.stubs import DIFFICULT, Stubs, ok

# Of a pod's command, Kubernetes replaces $(NAME) of variables that there are, and $$ by $.
KUBECTL = """
import pathlib, re, signal, subprocess, time
stubs = pathlib.Path(STUBS)
held, pid, pods = stubs / "jobset", stubs / "pid", stubs / "pods"
words = [word for word in sys.argv[1:] if not word.startswith("--")]
verb, kind = words[0], words[1] if len(words) > 1 else ""
if (stubs / "fail").exists() and (stubs / "fail").read_text() == verb:
    sys.exit("Error from server: no")

def expanded(text, variables):
    def replaced(found):
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])
    return re.sub(r"\\$\\$|\\$\\(([^)]*)\\)", replaced, text)

if verb == "create":
    manifest = json.load(sys.stdin)
    if held.exists():
        sys.exit("Error from server (AlreadyExists)")
    held.write_text(json.dumps({"spec": manifest["spec"], "status": {}}))
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    variables = {"HOME": "/replaced"}
    for variable in container["env"]:
        variables[variable["name"]] = expanded(variable["value"], variables)
    command = [expanded(word, variables) for word in container["command"]]
    log = open(stubs / "log", "w")
    process = subprocess.Popen(
        command, cwd=stubs / "checkout", env=os.environ | variables | {"HOME": os.environ["HOME"]}, stdout=log, stderr=log
    )
    pid.write_text(str(process.pid))
    pods.write_text(json.dumps(["pod/x-slice-0-0-a", "pod/x-slice-0-0-a", ""]))
elif verb == "get" and kind == "jobset" and held.exists():
    jobset = json.loads(held.read_text())
    print(f"found,{str(jobset['spec'].get('suspend', '')).lower()},{jobset['status'].get('terminalState', '')}")
elif verb == "get" and kind == "pods" and pods.exists():
    left = json.loads(pods.read_text())
    print(left[0])
    pods.write_text(json.dumps(left[1:] or left))
elif verb == "patch":
    jobset = json.loads(held.read_text())
    (patch,) = [word.removeprefix("--patch=") for word in sys.argv if word.startswith("--patch=")]
    jobset["spec"] |= json.loads(patch)["spec"]
    held.write_text(json.dumps(jobset))
    os.kill(int(pid.read_text()), signal.SIGTERM)
elif verb == "delete":
    (stubs / "saved_before_delete").write_text(str((stubs / "saved").exists()))
    held.unlink(missing_ok=True)
"""

POD = [
    "--name=x", "--image=registry/deltalm:1", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4",
    "--claim=shared:/shared", "--poll_seconds=0",
]  # fmt: skip
TRAINING = ["--", "--gin_file=pretrain_base.gin", "--run_dir=/shared/run", "--gin.A.g=$(HOME) $$(HOME) $$", *DIFFICULT]


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path / "stubs")
    stubs.add("kubectl", KUBECTL)
    yield stubs
    (stubs.folder / "exit_code").write_text("0")  # ends what still runs


def verbs(stubs):
    return [" ".join(word for word in call[1:3] if not word.startswith("-")) for call in stubs.calls("kubectl")]


def manifest(stubs, *more):
    return json.loads(ok(stubs.run("gke.sh", "manifest", *POD, *more, *TRAINING)).stdout)


def test_the_training_gets_the_very_arguments(stubs):
    ok(stubs.run("gke.sh", "run", *POD, "--env=VARIABLE=a  'b' $(HOME) $$", *TRAINING))
    (training,) = stubs.wait_for_trainings(1)
    assert training["arguments"] == ["-m", "deltalm_jax.train", "--coordinator=auto", *TRAINING[1:]]
    assert training["environment"]["VARIABLE"] == "a  'b' $(HOME) $$"


def test_run_leaves_a_training_alone_and_goes_on_after_stop(stubs):
    ok(stubs.run("gke.sh", "run", *POD, *TRAINING))
    stubs.wait_for_trainings(1)
    assert "running already" in ok(stubs.run("gke.sh", "run", *POD, *TRAINING)).stderr
    ok(stubs.run("gke.sh", "stop", *POD))
    assert (stubs.folder / "saved").exists()
    assert json.loads((stubs.folder / "jobset").read_text())["spec"]["suspend"] is True
    assert verbs(stubs)[-4:] == ["patch jobset", "get pods", "get pods", "get pods"]  # until there are none
    assert "x is suspended" in ok(stubs.run("gke.sh", "stop", *POD)).stderr  # again: nothing is left to do
    stubs.forget()
    ok(stubs.run("gke.sh", "run", *POD, *TRAINING))
    assert verbs(stubs) == ["get jobset", "delete jobset", "create"]
    stubs.wait_for_trainings(1)


@pytest.mark.parametrize(
    ("ended", "expected"), [("Failed", ["get jobset", "delete jobset", "create"]), ("Completed", ["get jobset"])]
)
def test_run_after_the_end(stubs, ended, expected):
    (stubs.folder / "jobset").write_text(json.dumps({"spec": {}, "status": {"terminalState": ended}}))
    ok(stubs.run("gke.sh", "run", *POD, *TRAINING))
    assert verbs(stubs) == expected


def test_delete_stops_first(stubs):
    ok(stubs.run("gke.sh", "run", *POD, *TRAINING))
    stubs.wait_for_trainings(1)
    ok(stubs.run("gke.sh", "delete", *POD))
    assert (stubs.folder / "saved_before_delete").read_text() == "True"
    assert not (stubs.folder / "jobset").exists()
    ok(stubs.run("gke.sh", "delete", *POD))


def test_what_cannot_be_stopped_is_not_deleted(stubs):
    (stubs.folder / "jobset").write_text(json.dumps({"spec": {}, "status": {}}))
    (stubs.folder / "fail").write_text("patch")
    done = stubs.run("gke.sh", "delete", *POD)
    assert done.returncode == 1
    assert "Error from server: no" in done.stderr
    assert "delete jobset" not in verbs(stubs)


def test_logs_and_status_and_context(stubs):
    where = ["--context=cluster one", "--namespace=team"]
    ok(stubs.run("gke.sh", "logs", *POD, *where, "--slice=1", "--worker=3", "--lines=7", "--follow"))
    (call,) = stubs.calls()
    assert call[1:4] == [*where, "logs"]
    assert (
        "--selector=jobset.sigs.k8s.io/jobset-name=x,jobset.sigs.k8s.io/job-index=1,"
        "batch.kubernetes.io/job-completion-index=3" in call
    )
    assert {"--tail=7", "--follow"} <= set(call)
    ok(stubs.run("gke.sh", "status", *POD))


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("4x4", 4, 4), ("2x2x4", 4, 4), ("2x4", 8, 1), ("16x16", 4, 64)]
)
def test_a_pod_for_each_host_of_each_slice(stubs, topology, chips, hosts):
    made = manifest(stubs, f"--topology={topology}", f"--chips_per_host={chips}", "--slices=3", "--spot")
    (slices,) = made["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (3, hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice", "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }  # fmt: skip


def test_volumes_reach_the_container(stubs):
    made = manifest(stubs, "--bucket=corpora:/data", "--service_account=reader")
    template = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    pod = template["spec"]
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/shared"]["name"]]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert volumes[mounts["/data"]["name"]]["csi"]["volumeAttributes"]["bucketName"] == "corpora"
    assert (mounts["/shared"]["readOnly"], mounts["/data"]["readOnly"]) == (False, True)
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["serviceAccountName"] == "reader"


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--topology=4by4", "--topology=4by4: expected chips along each side"),
        ("--chips_per_host=3", "16 chips, which hosts of 3 do not make up"),
        ("--claim=shared", "--claim=shared: expected CLAIM:/PATH"),
        ("--env=NAME", "--env=NAME: expected NAME=VALUE"),
        ("--slices=two", "--slices"),
    ],
)
def test_mistakes_are_named_and_nothing_is_created(stubs, flag, part):
    done = stubs.run("gke.sh", "run", *POD, flag, *TRAINING)
    assert done.returncode == 2
    assert part in done.stderr
    assert verbs(stubs).count("create") == 0


def test_a_dry_run_prints_a_pipeline_that_creates_the_jobset(stubs):
    printed = ok(stubs.run("gke.sh", "run", *POD, "--dry_run", *TRAINING)).stdout
    assert stubs.calls() == []
    words = shlex.split(printed)
    assert words[words.index("|") + 1 :] == ["kubectl", "create", "--filename=-"]
    assert re.match(r"kubectl get jobset x ", printed)
    made = words[words.index("--") : words.index("|")]
    assert made == TRAINING
