"""A run of an encoder with all three objectives: its queue of keys and its momentum encoder survive restarts as they are."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from deltalm_jax.training.gin_files import load
from deltalm_jax.training.saved_steps import SavedSteps
from deltalm_jax.training.step import create_state
from tests.support import runs
from tests.support.toy_data import write_toy_data

OBJECTIVES = ("masked_language_model", "translation_language_model", "cross_lingual_contrast")
ENCODER = (
    "ModelConfig.num_decoder_layers=0",
    "ModelConfig.sentence_layer=1",
    f"DataConfig.objective_batch_sizes={dict.fromkeys(OBJECTIVES, 8)}",
    f"DataConfig.sampling_exponents={dict.fromkeys(OBJECTIVES, 0.3)}",
    "DataConfig.noise_densities={}",
    "DataConfig.mean_span_lengths={}",
    "ContrastConfig.queue_size=40",
    "ContrastConfig.momentum=0.9",
    "TrainConfig.steps=14",
    "TrainConfig.eval_every=7",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder")
    write_toy_data(place / "data", runs.TOY_TASKS, shards=2, pairs=True)
    done = runs.run(place / "whole", place / "data", *ENCODER)
    assert done.returncode == 0, done.stderr
    return place


def test_contrast_counts_once_its_queue_is_full_and_is_reported(place):
    lines = runs.metrics(place / "whole")
    assert [line["step"] for line in lines] == list(range(1, 15))
    for line in lines:
        parts = [(line[f"loss/{name}"], name) for name in OBJECTIVES]
        assert all(np.isfinite(loss) for loss, _ in parts)
        assert 0 <= line["accuracy/cross_lingual_contrast"] <= 1
    assert "eval/masked_language_model/loss" in lines[6]
    assert "eval/translation_language_model/loss" in lines[13]
    assert not any("eval/cross_lingual_contrast" in name for name in lines[13])
    # 40 keys of 8 a step: a query of step 6 is the first to be told from 40 others.
    assert lines[5]["loss/cross_lingual_contrast"] == pytest.approx(np.log(41), abs=1.0)


def test_a_run_that_was_killed_ends_bit_equal(place):
    run_dir = place / "killed"
    first = runs.run(run_dir, place / "data", *ENCODER, faults=["kill@*:8:step"])
    assert first.returncode == -9, first.stderr
    again = runs.run(run_dir, place / "data", *ENCODER)
    assert again.returncode == 0, again.stderr
    assert "resuming at step 5" in again.stdout
    ours, wanted = runs.state(run_dir, 14), runs.state(place / "whole", 14)
    assert {"['contrast']['queue']", "['contrast']['next']", "['contrast']['filled']"} <= ours.keys()
    assert any("['contrast']['params']" in name for name in ours)
    assert ours.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(ours[name], wanted[name], err_msg=name)
    assert ours["['contrast']['filled']"] == 40
    assert ours["['contrast']['next']"] == 14 * 8 % 40


@pytest.mark.slow
def test_two_processes_put_the_same_keys_in_the_same_order(place):
    run_dir = place / "two"
    started = runs.run_processes(run_dir, place / "data", 2, *ENCODER)
    texts = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(texts)
    config = load(["pretrain_tiny.gin"], [*runs.SMALL, *ENCODER])
    shapes = jax.eval_shape(lambda: create_state(config.model, config.optimizer, 0, config.contrast_or_none))
    saved = SavedSteps(run_dir / "checkpoints", print)
    record = saved.latest()
    assert record is not None
    ours, wanted = saved.restore_part(record, "contrast", shapes["contrast"]), runs.state(place / "whole", 14)
    assert ours["next"] == wanted["['contrast']['next']"]
    np.testing.assert_allclose(ours["queue"], wanted["['contrast']['queue']"], atol=1e-4)
    assert [line["batch_digest"] for line in runs.metrics(run_dir)] == [
        line["batch_digest"] for line in runs.metrics(place / "whole")
    ]
