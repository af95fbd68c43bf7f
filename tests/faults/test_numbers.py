"""A run whose numbers go wrong: what it leaves out, when it goes back, when it stops, and that it can be replayed."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.faults.test_resume import assert_same_run
from tests.support import runs
from tests.support.toy_data import write_toy_data

# Batch 23, that of step 24, holds random targets: a real leap of a real loss.
POISONED = """
import sys
import numpy as np
from deltalm_jax.data.stream import Stream
plain = Stream.batch
def batch(self, step, rows=None, only=None):
    found = plain(self, step, rows, only)
    if step == 23:
        rng = np.random.default_rng(0)
        for arrays in found.values():
            arrays["targets"] = rng.integers(6000, 8000, arrays["targets"].shape).astype(np.int32)
    return found
Stream.batch = batch
from tests.faults import injector
sys.argv = ["injector", *sys.argv[1:]]
sys.exit(injector.main())
"""
GUARDED = ("TrainConfig.spike_factor=1.05", "TrainConfig.spike_window=5", "TrainConfig.eval_every=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("numbers")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    return place


def poisoned(place, name, *more, faults=()):
    command = runs.command(place / name, place / "data", *more, faults=["sleep@0:1000:step", *faults])
    return subprocess.run(
        [command[0], "-c", POISONED, *command[3:]], env=runs.environment(), cwd=place, text=True,
        capture_output=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rewound(place):
    done = poisoned(place, "rewound", *GUARDED)
    assert done.returncode == 0, done.stderr
    return place / "rewound", done.stdout


def test_a_spike_sends_the_run_back_and_its_data_are_left_out(rewound):
    run_dir, said = rewound
    assert "WARNING: step 24: the loss leapt to" in said
    assert "going back to step 20, without the batches 20 to 23" in said
    (line,) = (json.loads(text) for text in (run_dir / "rewinds.jsonl").read_text().splitlines())
    assert (line["step"], line["back_to"], line["skipped_data"]) == (24, 20, {"20": 24})
    assert line["loss"] > 1.05 * line["median"]
    assert [line["step"] for line in runs.metrics(run_dir)] == list(range(1, 41))
    about = json.loads((run_dir / "checkpoints" / "40" / "record.json").read_text())["about"]
    assert about["data"] == {"skipped": {"20": 24}, "next_batch": 44}


def test_a_rewound_run_can_be_replayed_bit_for_bit(place, rewound):
    """By naming what it left out, in a run that has no guard and never went back."""
    done = poisoned(place, "replayed", "TrainConfig.skipped_data={20: 24}", "TrainConfig.eval_every=0")
    assert done.returncode == 0, done.stderr
    assert_same_run(place / "replayed", rewound[0])


@pytest.mark.slow
def test_killed_after_a_rewind_it_ends_the_same(place, rewound):
    killed = poisoned(place, "killed", *GUARDED, faults=["kill@0:33:step"])
    assert killed.returncode == -9
    assert "going back to step 20" in killed.stdout
    done = poisoned(place, "killed", *GUARDED)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 25" in done.stdout or "resuming at step 30" in done.stdout
    assert "going back" not in done.stdout, "what is left out is in the checkpoint"
    assert_same_run(place / "killed", rewound[0])


def test_divergence_stops_the_run_and_nothing_bad_is_saved(place, tmp_path):
    done = runs.run(
        tmp_path / "run", place / "data", "OptimizerConfig.learning_rate=1e30", "OptimizerConfig.gradient_clip_norm=0.0",
        "ModelConfig.norm_placement='pre'", "TrainConfig.checkpoint_every=1000", "TrainConfig.max_skipped_in_a_row=2",
    )  # fmt: skip
    assert done.returncode == 65
    assert "the update is left out (2 in a row, 2 in all)" in done.stdout
    assert "3 updates in a row were left out, so the run stops" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*/record.json"))


def test_a_change_is_accepted_by_name_and_goes_on_record(place, rewound, tmp_path):
    subprocess.run(["cp", "-r", str(rewound[0]), str(tmp_path / "run")], check=True)
    changes = ("OptimizerConfig.learning_rate=0.001", "TrainConfig.seed=7", "TrainConfig.steps=45")
    named = ("--allow_config_change=OptimizerConfig.learning_rate", "--allow_config_change=TrainConfig.seed")
    one = runs.run(tmp_path / "run", place / "data", *changes, named[0])
    assert one.returncode == 2
    assert "TrainConfig.seed: 0 in the checkpoint, 7 now" in one.stderr
    assert "--allow_config_change=TrainConfig.seed" in one.stderr
    assert "learning_rate" not in one.stderr
    both = runs.run(tmp_path / "run", place / "data", *changes, *named)
    assert both.returncode == 0, both.stderr
    record = json.loads((tmp_path / "run" / "checkpoints" / "45" / "record.json").read_text())
    assert record["about"]["allowed_changes"] == [
        {"step": 40, "name": "OptimizerConfig.learning_rate", "was": 0.002, "is": 0.001},
        {"step": 40, "name": "TrainConfig.seed", "was": 0, "is": 7},
    ]
    wrong = runs.run(tmp_path / "run", place / "data", "--allow_config_change=seed")
    assert wrong.returncode == 2
    assert "there is no such name" in wrong.stderr
