"""What may not change when a run goes on."""

from __future__ import annotations

import pathlib

import pytest

from deltalm_jax.training.checkpoint import CheckpointError
from deltalm_jax.training.record import check_identity


def test_the_order_of_patterns_is_part_of_a_run():
    saved = {"OptimizerConfig.learning_rate_factors": {"^encoder/": 0.1, "kernel": 0.5}, "seed": 1}
    check_identity(
        saved,
        {"OptimizerConfig.learning_rate_factors": {"^encoder/": 0.1, "kernel": 0.5}, "seed": 1.0},
        pathlib.Path("run"),
    )
    swapped = {"OptimizerConfig.learning_rate_factors": {"kernel": 0.5, "^encoder/": 0.1}, "seed": 1}
    with pytest.raises(CheckpointError, match="learning_rate_factors: .* in the checkpoint, .* now"):
        check_identity(saved, swapped, pathlib.Path("run"))
