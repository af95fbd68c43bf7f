"""Makes `tests/golden/checkpoint_format_2`: a run's checkpoint of format 2, small, with numbers that a formula gives.

    python -m tests.training.golden_checkpoint tests/golden/checkpoint_format_2

A later version must read it (or refuse it by its format). It is made once for each format, by the version that wrote it.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEP = 7


def golden_state() -> Any:
    """Two parameters, Adam's state and the counters of step 7; two of its steps were skipped."""
    params = {"kernel": _numbers((4, 6), np.float32), "half": _numbers((5,), jnp.bfloat16)}
    adam, *rest = optax.adam(1e-3).init(params)
    adam = adam._replace(
        count=jnp.int32(STEP - 2), mu=jax.tree.map(lambda x: -x, params), nu=jax.tree.map(lambda x: x * x, params)
    )
    return {
        "params": params,
        "optimizer": (adam, *rest),
        "step": jnp.int32(STEP),
        "skipped": {"total": jnp.int32(2), "in_a_row": jnp.int32(0)},
    }


def _numbers(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """0, 1/8, 2/8 …: exact in all dtypes."""
    return jnp.asarray(np.arange(np.prod(shape)).reshape(shape) / 8, dtype)


def main(arguments: list[str]) -> None:
    """Writes the run directory given."""
    from deltalm_jax.training.checkpoint import Checkpoints

    # Elsewhere first: orbax writes the place into a file.
    with tempfile.TemporaryDirectory(prefix="golden_") as place:
        checkpoints = Checkpoints(pathlib.Path(place, "checkpoints"), 1, None, print)
        checkpoints.save(STEP, golden_state(), {"identity": {"TrainConfig.seed": 0}, "note": "golden"})
        checkpoints.close()
        shutil.copytree(place, arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
