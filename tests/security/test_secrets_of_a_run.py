"""A whole run with secrets all round it: begun, interrupted, gone on with and failed, it leaves and prints none of them.

And what it leaves is for the user alone, where the user's umask says so.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import runs
from tests.support.toy_data import write_toy_data

# In the environment, in the path of the data, and as a password of a URL on the command line.
TOKEN, FOLDER, PASSWORD = "tokenCanary01234", "folder-canary-0123", "passwordCanary01"
CANARIES = (TOKEN, FOLDER, PASSWORD)

FAIL = """
import os, sys
from deltalm_jax import fault_points, train

def fail(point, step):
    if (point, step) == ("step", 8):
        raise RuntimeError(f"the store does not take {os.environ['STORE_TOKEN']}")

fault_points.install(fail)
sys.exit(train.main(sys.argv[1:]))
"""


def secrets_in(*texts: bytes) -> list[str]:
    return [canary for canary in CANARIES if any(canary.encode() in text for text in texts)]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The run directory, and all that three starts of the run printed, by start."""
    root = tmp_path_factory.mktemp("secrets")
    prepared, run_dir = root / FOLDER / "data", root / "run"
    write_toy_data(prepared, runs.TOY_TASKS)
    environment = runs.environment() | {"STORE_TOKEN": TOKEN, "STORE_KEY": FOLDER}
    more = (f"DataConfig.vocabulary=https://me:{PASSWORD}@store/x.model", "TrainConfig.checkpoint_every=3")
    interrupted = runs.command(run_dir, prepared, *more, faults=["term@0:4:step"])
    flags = runs.command(run_dir, prepared, *more)[3:]
    refused = [*flags, f"--gin.DataConfig.data_dir=https://me:{PASSWORD}@store/corpora"]
    python = sys.executable
    commands = {
        "interrupted": interrupted,
        "failed": [python, "-c", FAIL, *flags],
        "refused": [python, "-m", "deltalm_jax.train", *refused],
    }
    return run_dir, {
        name: subprocess.run(
            command, env=environment, capture_output=True, timeout=300, cwd=root, umask=0o077, check=False
        )
        for name, command in commands.items()
    }


def test_what_is_printed(left):
    _, done = left
    assert done["interrupted"].returncode == 75, done["interrupted"]
    assert b"to go on:" in done["interrupted"].stdout
    assert b"DataConfig.vocabulary=https://me:[redacted]@store/x.model" in done["interrupted"].stdout
    assert done["failed"].returncode not in (0, 75)
    assert b"resuming at step 4" in done["failed"].stdout, "comparing redacted records, it is the same run"
    assert b"Traceback" in done["failed"].stderr
    assert b"the store does not take [redacted]" in done["failed"].stderr
    assert done["refused"].returncode == 2
    assert b"found 'https://me:[redacted]@store/corpora'" in done["refused"].stderr
    for name, process in done.items():
        assert secrets_in(process.stdout, process.stderr) == [], name


def test_what_is_recorded(left):
    run_dir, _ = left
    values = json.loads((run_dir / "config.json").read_text())["values"]
    assert values["DataConfig.vocabulary"] == "https://me:[redacted]@store/x.model"
    assert values["DataConfig.prepared_dir"].endswith("/[redacted]/data")
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl", "data.json"} <= {path.name for path in files}
    assert any("checkpoints" in path.parts for path in files)
    assert {path: found for path in files if (found := secrets_in(path.read_bytes()))} == {}
    assert secrets_in("".join(map(str, files)).removeprefix(str(run_dir)).encode()) == []


def test_what_is_written_is_for_whom_the_umask_says(left):
    run_dir, _ = left
    paths = [run_dir, *run_dir.rglob("*")]
    assert len(paths) > 10
    assert {str(path): oct(path.stat().st_mode) for path in paths if path.stat().st_mode & 0o077} == {}
