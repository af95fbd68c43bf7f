"""Which array is split over which mesh axis: one table, read from top to bottom.

Parameters follow the table. What is as large as a parameter but not needed to compute with it (optimizer moments, the
moving average) is split like the parameter and, along the first free dimension that divides, over `data` too (ZeRO-1:
each data-parallel group keeps a part only). Batches are split over `data` and `fsdp`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deltalm_jax.model.attention import Attend, KeysValues, Mask
from deltalm_jax.parallel.mesh import MeshError

BATCH_AXES = ("data", "fsdp")

# Parameter path (a regular expression, matched at the end) → split of its dimensions, the last one last: leading
# dimensions not mentioned (the layer axis of stacked layers) stay whole. Attention kernels are heads major, so splitting
# their width over `tensor` keeps heads whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"token_embedding", ("tensor", "fsdp")),
    (r"position_embedding", (None, "fsdp")),
    (r"attention/(query|key|value)/kernel", ("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias", ("tensor",)),
    (r"attention/output/kernel", ("tensor", "fsdp")),
    (r"feed_forward/input/kernel", ("fsdp", "tensor")),
    (r"feed_forward/input/bias", ("tensor",)),
    (r"feed_forward/output/kernel", ("tensor", "fsdp")),
    (r"(output/bias|layer_norm/(scale|bias))", (None,)),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text, "encoder/layers/feed_forward/input/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_spec(name: str, ndim: int) -> P:
    """The table's split of a parameter.

    Raises:
      KeyError: no rule matches; a new parameter must be given a rule.
    """
    for pattern, axes in RULES:
        if re.search(f"(^|[/_]){pattern}$", name):
            return P(*(None,) * (ndim - len(axes)), *axes)
    raise KeyError(f"no sharding rule for the parameter {name!r}: add one to RULES in {__name__}")


def _fits(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The split without axes that do not divide their dimension, or have one device only (and split nothing)."""
    return P(*(a if a and mesh.shape[a] > 1 and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(spec)))


def _over_data_too(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    if mesh.shape["data"] == 1:
        return spec
    for i, size in enumerate(shape):
        if spec[i] is None and size % mesh.shape["data"] == 0:
            return P(*spec[:i], "data", *spec[i + 1 :])
    return spec


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a training state {"params", "optimizer", "step", …} (arrays or shapes), as a tree like it."""
    shapes = {path_name(p): tuple(np.shape(x)) for p, x in jax.tree_util.tree_leaves_with_path(state["params"])}

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        part, shape = path_name(path[:1]), tuple(np.shape(leaf))
        if len(shape) == 0:
            return replicated(mesh)
        # An optimizer's leaves end in the path of their parameter: "optimizer/1/mu/encoder/…".
        endings = [path_name(path[i:]) for i in range(1, len(path))]
        name = next((n for n in endings if n in shapes), None)
        if name is not None and shapes[name] == shape:
            spec = _fits(parameter_spec(name, len(shape)), shape, mesh)
        else:  # Adafactor's factored moments and constants have another shape, and little in them.
            spec = P(*[None] * len(shape))
        return NamedSharding(mesh, spec if part == "params" else _over_data_too(spec, shape, mesh))

    return jax.tree_util.tree_map_with_path(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def map_over_batch(function: Callable[..., jax.Array], mesh: Mesh, split: tuple[bool, ...]) -> Callable[..., jax.Array]:
    """`function` run by each device on its own rows of the batch, without a word to the others.

    Args:
      function: of arrays; its result has a leading axis, along which the shards' results are joined.
      mesh: the mesh; its `tensor` axis is still the partitioner's.
      split: for each argument, whether it is split over the batch axes (else every device has the whole).
    """
    if all(mesh.shape[axis] == 1 for axis in BATCH_AXES):
        return function
    specs = tuple(P(BATCH_AXES) if rows else P() for rows in split)
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=P(BATCH_AXES), axis_names=set(BATCH_AXES), check_vma=False
    )


def map_over_batch_and_heads(attend: Attend, mesh: Mesh) -> Attend:
    """Attention run by each device on its own rows and heads: the partitioner cannot split a kernel.

    Where `tensor` does not divide the heads, each of its devices computes them all.
    """
    if mesh.size == 1:
        return attend

    def attend_by_shard(query_BTHK: jax.Array, seen: KeysValues, mask: Mask) -> jax.Array:
        heads_axis = "tensor" if query_BTHK.shape[2] % mesh.shape["tensor"] == 0 else None
        by_head, by_row = P(BATCH_AXES, None, heads_axis, None), P(BATCH_AXES)
        return jax.shard_map(
            lambda query_BTHK, seen, real_BS: attend(query_BTHK, seen, mask._replace(real_BS=real_BS)),
            mesh=mesh,
            in_specs=(by_head, by_head, by_row),
            out_specs=by_head,
            check_vma=False,
        )(query_BTHK, seen, mask.real_BS)

    return attend_by_shard


def check_batch(batch_sizes: dict[str, int], mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raises MeshError if a group's batch does not divide evenly over the devices that share it and the microbatches."""
    devices = int(np.prod([mesh.shape[a] for a in BATCH_AXES]))
    ways = devices * accumulation_steps
    for name, size in batch_sizes.items():
        if size % ways:
            times = f" × {accumulation_steps} microbatches" if accumulation_steps > 1 else ""
            raise MeshError(
                f"objective_batch_sizes[{name!r}] is {size}, which does not divide over data × fsdp = {devices} devices"
                f"{times}: use a multiple of {ways}, or move devices to the tensor axis"
            )


def process_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending; int [rows].

    They need not be consecutive: on a TPU the mesh follows the wiring, not the numbers of the hosts.
    """
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    held = np.zeros(batch_size, bool)
    for span in spans:
        if span is not None:
            held[span[0]] = True
    return np.flatnonzero(held)


def put_batch(batch: dict[str, dict[str, np.ndarray]], batch_sizes: dict[str, int], mesh: Mesh) -> Any:
    """This process's rows of a batch, as global arrays on the devices (no copy waits for the device)."""
    sharding = batch_sharding(mesh)
    return {
        group: {
            k: jax.make_array_from_process_local_data(sharding, v, (batch_sizes[group], *v.shape[1:]))
            for k, v in arrays.items()
        }
        for group, arrays in batch.items()
    }
