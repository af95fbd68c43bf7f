"""What may not change when a run goes on, and where in its data it goes on."""

from __future__ import annotations

import pathlib

import pytest

from deltalm_jax.training.checkpoint import CheckpointError
from deltalm_jax.training.gin_files import load
from deltalm_jax.training.resuming import check_identity, place_in_data

RUN = pathlib.Path("run")


def test_the_order_of_patterns_is_part_of_a_run():
    saved = {"OptimizerConfig.learning_rate_factors": {"^encoder/": 0.1, "kernel": 0.5}, "seed": 1}
    same = {"OptimizerConfig.learning_rate_factors": {"^encoder/": 0.1, "kernel": 0.5}, "seed": 1.0}
    assert check_identity(saved, same, RUN) == []
    swapped = {"OptimizerConfig.learning_rate_factors": {"kernel": 0.5, "^encoder/": 0.1}, "seed": 1}
    with pytest.raises(CheckpointError, match="learning_rate_factors: .* in the checkpoint, .* now"):
        check_identity(saved, swapped, RUN)


def test_a_field_younger_than_the_checkpoint_had_its_default():
    identity = load(["pretrain_tiny.gin"]).identity()
    older = {k: v for k, v in identity.items() if k not in ("TrainConfig.skipped_data", "OptimizerConfig.ema_decay")}
    assert check_identity(older, identity, RUN) == []
    with pytest.raises(CheckpointError, match=r"OptimizerConfig.ema_decay: 0.0 in the checkpoint, 0.5 now"):
        check_identity(older, identity | {"OptimizerConfig.ema_decay": 0.5}, RUN)


def test_other_data_and_another_vocabulary_need_a_name_each():
    saved, wanted = {"data": "aa", "vocabulary": "bb"}, {"data": "cc", "vocabulary": "dd"}
    with pytest.raises(CheckpointError, match="vocabulary: 'bb' in the checkpoint, 'dd' now"):
        check_identity(saved, wanted, RUN, ["data"])
    assert [c["name"] for c in check_identity(saved, wanted, RUN, ["data", "vocabulary"])] == ["data", "vocabulary"]


def record(**data):
    return {"step": 30, "about": {"data": data, "recent_losses": [2.0]}}


def test_the_place_in_the_data_is_that_of_the_step():
    order, losses = place_in_data(record(skipped={"20": 24}, next_batch=34), {})
    assert (order.windows, losses) == (((20, 24),), [2.0])
    more, _ = place_in_data(record(skipped={"20": 24}, next_batch=34), {10: 12, 20: 24, 33: 36, 50: 60})
    assert more.windows == ((20, 24), (34, 36), (50, 60)), "what was trained on cannot be left out any more"
    assert more.batch_of(30) == 36


@pytest.mark.parametrize("data", [{"skipped": {"20": 24}, "next_batch": 30}, {"skipped": {}}, {"skipped": {"5": 4}}])
def test_a_place_in_the_data_that_cannot_be_is_refused(data):
    with pytest.raises(
        CheckpointError, match="checkpoint 30 (is at odds with itself|does not say where its data go on)"
    ):
        place_in_data(record(**data), {})
