"""Several processes over loopback train on the same batches as one, and stop together."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from deltalm_jax.parallel.mesh import MeshConfig, make_mesh
from deltalm_jax.training.digest import batch_digest
from tests.support import runs
from tests.support.toy_data import write_toy_data

STEPS = 50
LONG = (f"TrainConfig.steps={STEPS}", "TrainConfig.eval_every=0", "TrainConfig.checkpoint_every=1000")


def options(place):
    """All runs start from the same other run."""
    return *LONG, f"TrainConfig.init_from={place / 'start'}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("processes")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    done = runs.run(place / "start", place / "data", "TrainConfig.steps=1")
    assert done.returncode == 0, done.stderr
    done = runs.run(place / "one", place / "data", *options(place))
    assert done.returncode == 0, done.stderr
    return place


def outputs(processes, limit=240.0):
    deadline = time.monotonic() + limit
    try:
        return [p.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for p in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    ("processes", "devices", "more"),
    [
        (2, 1, ()),
        pytest.param(2, 4, ("MeshConfig.fsdp=2",), marks=pytest.mark.slow),
        pytest.param(4, 1, (), marks=pytest.mark.slow),
    ],
)
def test_batches_and_losses_are_those_of_one_process(place, processes, devices, more):
    run_dir = place / f"with{processes}times{devices}"
    started = runs.run_processes(run_dir, place / "data", processes, *options(place), *more, devices=devices)
    texts = outputs(started, 600.0)  # four processes on two cores take turns
    assert [p.returncode for p in started] == [0] * processes, "\n".join(texts)
    ours, alone = runs.metrics(run_dir), runs.metrics(place / "one")
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert [line["batch_digest"] for line in ours] == [line["batch_digest"] for line in alone]
    # Dropout bits do not depend on the mesh; what is left is the order of sums.
    for a, b in zip(ours, alone, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_sigterm_to_one_of_two_stops_both_with_one_checkpoint_and_one_process_goes_on(place):
    run_dir = place / "terminated"
    started = runs.run_processes(run_dir, place / "data", 2, *options(place))
    deadline = time.monotonic() + 120
    while len(runs.metrics(run_dir)) < 5:
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in started), "\n".join(outputs(started))
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    texts = outputs(started)
    assert [p.returncode for p in started] == [75, 75], "\n".join(texts)
    (saved,) = (int(p.name) for p in (run_dir / "checkpoints").iterdir())
    assert runs.metrics(run_dir)[-1]["step"] == saved < STEPS
    again = runs.run(run_dir, place / "data", *options(place))
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {saved}" in again.stdout
    digests = [line["batch_digest"] for line in runs.metrics(run_dir)]
    assert digests == [line["batch_digest"] for line in runs.metrics(place / "one")]


WOVEN = """
import sys
import numpy as np
from jax.sharding import AxisType, Mesh
from deltalm_jax.parallel.mesh import AXES, initialize_processes
from deltalm_jax.parallel.sharding import process_rows, put_batch
initialize_processes(sys.argv[1], 2, int(sys.argv[2]))
import jax
from jax.experimental import multihost_utils
from deltalm_jax.training.digest import batch_digest
# As on a TPU, where the mesh follows the wiring: the processes' devices alternate.
devices = np.array(jax.devices())[[0, 2, 1, 3]].reshape(1, 4, 1, 1, 1, 1)
mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
whole = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
rows = process_rows(8, mesh)
batch = put_batch({"g": {"inputs": whole[rows]}}, {"g": 8}, mesh)
seen = multihost_utils.process_allgather(batch["g"]["inputs"], tiled=True)
digest = jax.jit(lambda batch: batch_digest(batch, mesh))(batch)
print("rows", rows.tolist(), "whole", bool((seen == whole).all()), "digest", np.asarray(digest).tolist())
"""


def test_rows_reach_their_place_on_a_mesh_that_alternates_between_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WOVEN, address, str(i)], env=runs.environment(devices=2), text=True, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    texts = [p.communicate(timeout=120) for p in started]
    assert [p.returncode for p in started] == [0, 0], texts
    whole = {"g": {"inputs": np.arange(40, dtype=np.int32).reshape(8, 5)}}
    digest = np.asarray(batch_digest(whole, make_mesh(MeshConfig(), jax.devices()[:1]))).tolist()
    lines = [next(line for line in out.splitlines() if line.startswith("rows")) for out, _ in texts]
    assert lines == [f"rows {rows} whole True digest {digest}" for rows in ([0, 1, 4, 5], [2, 3, 6, 7])]
