"""Runs in a bucket of Google Cloud Storage, spoken to as Google's would be: a server on this machine has its JSON API."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from deltalm_jax import checkpoints as checkpoints_command
from deltalm_jax import convert, fault_points
from deltalm_jax.paths import LocationError
from deltalm_jax.saved_model import open_model
from deltalm_jax.training.checkpoint import CheckpointError, Checkpoints, SavedSteps
from deltalm_jax.training.ownership import owned
from deltalm_jax.training.storage import run_path
from deltalm_jax.weights.state_dict import abstract_params, flatten
from tests.support import runs
from tests.support.bucket_server import Bucket, bucket_for_all, place_of
from tests.support.toy_data import write_toy_data

NAME = "bucket-of-tests"
ME = f"{socket.gethostname()}, process {os.getpid()}"
STATE = {"params": {"a": jnp.arange(300.0)}, "step": jnp.int32(0)}
SHORT = ("TrainConfig.steps=12", "TrainConfig.checkpoint_every=4", "TrainConfig.eval_every=12")


@pytest.fixture(scope="module")
def store():
    with bucket_for_all(NAME) as served:
        yield served


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


def test_a_model_in_a_bucket_is_converted(killed, place, store, tmp_path, capsys):
    for output, run in (("ours", f"gs://{NAME}/runs/killed"), ("theirs", place / "whole")):
        assert convert.main(["--from=native", f"--input={run}", f"--output={tmp_path / output}"]) == 0
    ours, theirs = (sorted((tmp_path / output).glob("*.safetensors")) for output in ("ours", "theirs"))
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs] != []
    assert convert.main(["--from=deltalm", f"--input=gs://{NAME}/x.pt", f"--output={tmp_path / 'more'}"]) == 2
    assert "read from a disk" in capsys.readouterr().err


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
    ("fault", "newest", "left"),
    [
        ("kill@*:10:save/begin", 5, {"5"}),
        ("kill@*:10:save/written", 5, {"5", "10"}),
        ("kill@*:10:save/record", 5, {"5", "10"}),
        ("kill@*:10:save/retire", 10, {"5", "10"}),
        ("kill@*:5:save/delete", 10, {"5", "10"}),
    ],
)
def test_killed_at_any_point_of_a_save_the_newest_step_is_whole(directory, store, fault, newest, left):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory), fault], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    assert {step for step in ("5", "10") if below(directory, store, int(step))} == left
    assert SavedSteps(directory, pytest.fail).latest()["step"] == newest
    unfinished = [step for step in (5, 10) if not any(n.endswith("record.json") for n in below(directory, store, step))]
    warnings: list[str] = []
    with opened(directory, warnings.append, keep=1) as checkpoints:
        assert not below(directory, store, *unfinished), "leftovers are gone"
        assert len(warnings) == len([step for step in unfinished if str(step) in left])
        save_all(checkpoints, 15)
    assert SavedSteps(directory, pytest.fail).steps() == [15]
    assert not below(directory, store, 5, 10)


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
