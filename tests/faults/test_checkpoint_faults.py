"""Saves that fail or are killed inside a real run: it goes on from the newest whole step and ends bit for bit the same."""

from __future__ import annotations

import pytest

from deltalm_jax.training.saved_steps import SavedSteps
from tests.support import runs
from tests.support.toy_data import write_toy_data

OPTIONS = (
    "TrainConfig.steps=16",
    "TrainConfig.checkpoint_every=4",
    "TrainConfig.keep_checkpoints=1",
    "TrainConfig.eval_every=0",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2)
    done = train(place, "whole")
    assert done.returncode == 0, done.stderr
    return place


def train(place, name, *faults):
    return runs.run(place / name, place / "data", *OPTIONS, faults=faults)


def names(place, run):
    return sorted(p.name for p in (place / run / "checkpoints").iterdir())


def assert_same_run(place, run):
    lines, whole = runs.metrics(place / run), runs.metrics(place / "whole")
    assert [line["step"] for line in lines] == list(range(1, 17))
    for key in ("loss", "grad_norm", "batch_digest"):
        assert [line[key] for line in lines] == [line[key] for line in whole]
    ours, theirs = runs.state(place / run, 16), runs.state(place / "whole", 16)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 100
    for name, value in ours.items():
        assert value.tobytes() == theirs[name].tobytes(), name


def test_killed_before_the_record_before_retiring_and_while_deleting(place):
    """One run, three times killed: at most one interval is lost each time."""
    for fault, newest, left in (
        ("kill@0:8:save/record", 4, {"4", "8"}),
        ("kill@0:8:save/retire", 8, {"4", "8"}),
        ("kill@0:8:save/delete", 12, {"12"}),
    ):
        done = train(place, "killed", fault)
        assert done.returncode == -9, done.stderr
        assert {n for n in names(place, "killed") if n.isdigit()} == left
        assert SavedSteps(place / "killed" / "checkpoints", pytest.fail).latest()["step"] == newest
    assert any(n.startswith(".deleting-8-") for n in names(place, "killed"))
    done = train(place, "killed")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 12" in done.stdout
    assert names(place, "killed") == ["16"]
    assert_same_run(place, "killed")


def test_a_full_disk_in_the_last_save_is_an_error_and_the_next_run_makes_up_for_it(place):
    done = train(place, "full", "full@0:16:save/record")
    assert done.returncode not in (0, 75), done.stdout
    assert "the run finished, but step 16 is not saved: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(place, "full") == ["12"]
    done = train(place, "full")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 12" in done.stdout
    assert_same_run(place, "full")
