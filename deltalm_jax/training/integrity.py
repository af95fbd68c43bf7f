"""Is the state sound? Every number finite, and every copy of it the same on all devices that hold one.

A chip that computes wrongly is silent: its copy of a parameter drifts, and each checkpoint keeps whichever copy it reads.
So every `TrainConfig.check_every` steps, and before each save, every device digests what it holds, bit by bit, and the
digests of copies are compared.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deltalm_jax.errors import UserError
from deltalm_jax.parallel.sharding import path_name, replicated, spec_axes
from deltalm_jax.training.digest import array_digest
from deltalm_jax.training.guards import NonFiniteError


class IntegrityError(UserError, RuntimeError):
    """Copies of the state differ between devices; nothing of it may be saved."""

    exit_code = 70


class IntegrityCheck:
    """Digests a training state on the devices, and compares what should be equal.

    Args:
      abstract: shapes, dtypes and shardings of the state.
      mesh: the mesh.
    """

    def __init__(self, abstract: Any, mesh: Mesh) -> None:
        self._mesh = mesh
        leaves = jax.tree_util.tree_leaves_with_path(abstract)
        self._names = [path_name(path) for path, _ in leaves]
        self._specs = [leaf.sharding.spec for _, leaf in leaves]
        axes = mesh.axis_names

        def local(*shards: jax.Array) -> jax.Array:
            digests = jnp.stack([array_digest(shard) for shard in shards])
            strange = jnp.stack([_not_finite(shard) for shard in shards])
            return jnp.stack([digests, strange]).reshape(*[1] * len(axes), 2, -1)

        by_device = jax.shard_map(
            local, mesh=mesh, in_specs=tuple(self._specs), out_specs=P(*axes, None, None), check_vma=False
        )
        self._look = jax.jit(by_device, out_shardings=replicated(mesh))

    def __call__(self, state: Any, step: int) -> None:
        """Looks at the state after `step`; waits for the devices. All processes must call it, and find the same.

        Raises:
          NonFiniteError: names leaves that hold what is no finite number.
          IntegrityError: names the leaf, and the devices and processes whose copies are in the minority.
        """
        found = np.asarray(self._look(*jax.tree.leaves(state)))
        digests, strange = found[..., 0, :], found[..., 1, :]
        across = tuple(range(digests.ndim - 1))
        if (bad := np.flatnonzero(strange.any(axis=across))).size:
            names = ", ".join(self._names[i] for i in bad[:5])
            more = f" and {bad.size - 5} more" if bad.size > 5 else ""
            raise NonFiniteError(
                f"step {step}: {names}{more} hold numbers that are not finite, though loss and gradient were. Nothing is "
                "saved; start again from the last checkpoint, with a lower OptimizerConfig.learning_rate"
            )
        for number, (name, spec) in enumerate(zip(self._names, self._specs, strict=True)):
            if others := self._minority(digests[..., number], spec):
                raise IntegrityError(
                    f"step {step}: copies of {name} differ: {', '.join(others)} have other bits than the rest, or than one "
                    "another. One of these devices or its network computes wrongly: take its host out, and start again from "
                    "a checkpoint"
                )

    def _minority(self, digests: np.ndarray, spec: P) -> list[str]:
        """Devices whose copy is not that of most (all, where there is no most), as text; digests has the mesh's shape."""
        copied = [i for i, axis in enumerate(self._mesh.axis_names) if axis not in spec_axes(spec)]
        copies = math.prod(digests.shape[i] for i in copied)
        rows = np.moveaxis(digests, copied, range(len(copied))).reshape(copies, -1)
        devices = np.moveaxis(self._mesh.devices, copied, range(len(copied))).reshape(copies, -1)
        if (rows == rows[0]).all():
            return []
        found = []
        for column, holders in zip(rows.T, devices.T, strict=True):
            values, counts = np.unique(column, return_counts=True)
            right = values[counts == counts.max()]
            if len(values) > 1:  # of two copies that differ, either may be wrong
                found += [d for d, v in zip(holders, column, strict=True) if len(right) > 1 or v != right[0]]
        shown = [f"device {device.id} of process {device.process_index}" for device in found[:8]]
        return shown + (["…"] if len(found) > 8 else [])


def _not_finite(shard: jax.Array) -> jax.Array:
    """Whether an array of floats holds what is no number; uint32."""
    if not jnp.issubdtype(shard.dtype, jnp.floating):
        return jnp.uint32(0)
    return jnp.any(~jnp.isfinite(shard)).astype(jnp.uint32)
