"""Runs in a bucket of Google Cloud Storage, spoken to as Google's would be: a server on this machine has its JSON API."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time

import numpy as np
import pytest

from deltalm_jax import checkpoints as checkpoints_command
from deltalm_jax import convert
from deltalm_jax.paths import LocationError
from deltalm_jax.saved_model import open_model
from deltalm_jax.training.ownership import owned
from deltalm_jax.training.storage import run_path
from deltalm_jax.weights.state_dict import abstract_params, flatten
from tests.support import runs
from tests.support.bucket_server import Bucket, bucket_for_all
from tests.support.toy_data import write_toy_data

NAME = "bucket-of-tests"
ME = f"{socket.gethostname()}, process {os.getpid()}"
SHORT = ("TrainConfig.steps=12", "TrainConfig.checkpoint_every=4", "TrainConfig.eval_every=12")


@pytest.fixture(scope="module")
def store():
    with bucket_for_all(NAME) as served:
        yield served


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


def train(place, store: Bucket, run_dir, *more, faults=()):
    return subprocess.run(
        runs.command(run_dir, place / "data", *SHORT, *more, faults=faults),
        env=runs.environment() | store.environment,
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
    whole = runs.run(place / "whole", place / "data", *SHORT)
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


def test_places_where_no_run_can_be(store):
    for url in ("s3://bucket/run", "memory://bucket/run", f"gs://{NAME}", f"gs://{NAME}/"):
        with pytest.raises(LocationError, match="a run is kept in a folder or in a bucket of Google Cloud Storage|s3"):
            run_path(url)
    assert str(run_path(f"gs://{NAME}/runs/a/")) == f"gs://{NAME}/runs/a"


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
            command, env=runs.environment() | store.environment | nobody, capture_output=True, text=True,
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
        processes = runs.run_processes(run_dir, place / "data", 2, *more)
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
