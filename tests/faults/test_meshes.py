"""A run that goes on on other devices, other meshes and another number of processes is the same run, to rounding."""

from __future__ import annotations

import json
import subprocess

import jax
import numpy as np
import pytest

from deltalm_jax.training.exchange import Exchange, Told
from tests.faults.test_processes import outputs
from tests.support import runs
from tests.support.toy_data import write_toy_data

ONE_GO = ("TrainConfig.steps=30", "TrainConfig.eval_every=0", "TrainConfig.checkpoint_every=10")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("meshes")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


@pytest.fixture(scope="module")
def one(place):
    """The run of one process with one device, which only the slow tests are held to."""
    done = runs.run(place / "one", place / "data", *ONE_GO)
    assert done.returncode == 0, done.stderr
    return place / "one"


def assert_same_to_rounding(ours, theirs, steps=30):
    ours, theirs = runs.metrics(ours), runs.metrics(theirs)
    assert [line["step"] for line in ours] == list(range(1, steps + 1))
    for a, b in zip(ours, theirs, strict=True):
        assert a["batch_digest"] == b["batch_digest"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_from_eight_devices_to_four_to_two(place, one):
    run_dir = place / "shrinking"
    for devices, stop, axes in ((8, 10, ("fsdp=2",)), (4, 20, ("tensor=2",)), (2, 30, ())):
        bindings = [f"TrainConfig.stop_at_step={stop}", *(f"MeshConfig.{axis}" for axis in axes)]
        done = runs.run(run_dir, place / "data", *ONE_GO, *bindings, devices=devices)
        assert done.returncode == 0, done.stderr
        assert f"on {devices} cpu device(s)" in done.stdout
    assert_same_to_rounding(run_dir, one)


@pytest.mark.slow
def test_from_two_processes_to_one_to_four(place, one):
    run_dir = place / "regrouping"
    for processes, stop in ((2, 10), (1, 20), (4, 30)):
        bindings = (*ONE_GO, f"TrainConfig.stop_at_step={stop}")
        if processes == 1:
            done = runs.run(run_dir, place / "data", *bindings)
            assert done.returncode == 0, done.stderr
            continue
        started = runs.run_processes(run_dir, place / "data", processes, *bindings)
        texts = outputs(started, 500.0)
        assert [p.returncode for p in started] == [0] * processes, "\n".join(texts)
    assert_same_to_rounding(run_dir, one)


DIVIDED = """
import sys
import jax
import numpy as np
from deltalm_jax.training import loop
make = loop.make_train_step
def make_train_step(*args, **kwargs):
    step = make(*args, **kwargs)
    def divided(state, batch):
        state, metrics = step(state, batch)
        if int(state["step"]) == 12:  # device 2's chip adds wrongly, once
            leaf = state["skipped"]["total"]
            copies = [jax.device_put(np.array(s.data) + (s.device.id == 2), s.device) for s in leaf.addressable_shards]
            state["skipped"]["total"] = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, copies)
        return state, metrics
    return divided
loop.make_train_step = make_train_step
from deltalm_jax.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_device_that_drifts_stops_the_run_before_anything_of_it_is_saved(place):
    bindings = (*ONE_GO, "TrainConfig.checkpoint_every=5", "TrainConfig.check_every=7")
    command = runs.command(place / "divided", place / "data", *bindings)
    done = subprocess.run(
        [command[0], "-c", DIVIDED, *command[3:]], env=runs.environment(devices=4), cwd=place, text=True,
        capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    assert "step 14: copies of skipped/total differ: device 2 of process 0 have other bits" in done.stderr
    assert sorted(int(p.name) for p in (place / "divided" / "checkpoints").iterdir()) == [5, 10]


def test_temporary_checkpoints_by_the_clock_leave_room_for_newer_ones(place):
    bindings = ("TrainConfig.checkpoint_minutes=1e-9", "TrainConfig.check_every=4", "TrainConfig.stop_at_step=21")
    done = runs.run(place / "clock", place / "data", *ONE_GO, *bindings)
    assert done.returncode == 0, done.stderr
    records = {
        int(p.parent.name): json.loads(p.read_text()) for p in (place / "clock" / "checkpoints").glob("*/record.json")
    }
    assert {step: record["temporary"] for step, record in records.items()} == {10: False, 20: False, 21: True}


@pytest.mark.slow
def test_the_process_that_the_others_wait_for_is_named(place):
    """Three batches of process 1 take three seconds each, more than can have been made ahead."""
    faults = [f"sleep@1:{step}:batch" for step in (14, 15, 16)]
    bindings = (*ONE_GO, "TrainConfig.steps=20", "TrainConfig.check_every=10", "TrainConfig.tensorboard=False")
    started = runs.run_processes(
        place / "slow", place / "data", 2, *bindings, faults=faults
    )  # fmt: skip
    texts = outputs(started)
    assert [p.returncode for p in started] == [0, 0], "\n".join(texts)
    line = runs.metrics(place / "slow")[19]
    assert line["processes/data_slowest"] == 1
    assert line["processes/data_seconds_slowest"] > 0.3
    assert "WARNING: process 1 on" in texts[0]
    assert "of each" in texts[0]
    assert "step go into waiting for data" in texts[0]


def test_a_process_is_named_only_if_it_matters():
    exchange = Exchange()
    assert len(exchange.hosts) == jax.process_count() == 1
    exchange.hosts = ["a", "b", "c"]
    even = Told(np.ones(3), np.array([0.02, 0.02, 0.02]), np.array([0.01, 0.01, 0.04]), np.zeros(3))
    assert exchange.warning(even) is None, "four times the median, but a small part of the step"
    late = Told(np.ones(3), np.array([0.02, 0.02, 0.02]), np.array([0.01, 0.01, 0.4]), np.zeros(3))
    assert exchange.warning(late).startswith("WARNING: process 2 on c holds the others up: 0.40 s of each 1.00 s step")
    all_late = Told(np.ones(3), np.array([0.3, 0.4, 0.5]), np.array([0.4, 0.3, 0.4]), np.zeros(3))
    assert exchange.warning(all_late) is None
