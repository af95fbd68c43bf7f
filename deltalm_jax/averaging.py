"""The mean of a run's newest checkpoints: often a better model than the last of them (Junczys-Dowmunt et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from deltalm_jax.model.deltalm import Params
from deltalm_jax.saved_model import SavedModel, SavedModelError, open_model
from deltalm_jax.training.saved_steps import SavedSteps
from deltalm_jax.weights.state_dict import abstract_params


def checkpoints_of(run_dir: Path, count: int) -> list[SavedModel]:
    """The `count` newest checkpoints of a run, oldest first, verified.

    Raises:
      SavedModelError: it is no run, or has fewer.
      CheckpointError: one of them is damaged.
    """
    directory = run_dir / "checkpoints"
    if not directory.is_dir():
        raise SavedModelError(
            f"{run_dir}: expected a run, whose checkpoints can be averaged; it has no folder checkpoints"
        )
    steps = SavedSteps(directory, print).steps()
    if len(steps) < count:
        raise SavedModelError(
            f"{run_dir}: expected at least {count} checkpoints to average, found {len(steps)} "
            f"({', '.join(map(str, steps)) or 'none'}); TrainConfig.keep_checkpoints says how many are kept"
        )
    return [open_model(directory / str(step)) for step in steps[-count:]]


def average(models: Sequence[SavedModel]) -> Params:
    """The mean of all parameters, float32, summed up in float64; models of one shape, read one after the other.

    Raises:
      SavedModelError: their shapes differ.
    """
    total: Params | None = None
    for model in models:
        if model.config != models[0].config:
            raise SavedModelError(f"{model.path} and {models[0].path} are models of different shapes, and have no mean")
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.read(abstract_params(model.config)))
        total = params if total is None else jax.tree.map(np.add, total, params)
    return jax.tree.map(lambda leaf: (leaf / len(models)).astype(np.float32), total)
