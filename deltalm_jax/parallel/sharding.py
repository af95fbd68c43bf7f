"""Which array is split over which mesh axis, and what travels between devices because of it.

One table, read from top to bottom, says how parameters are split over `fsdp` and `tensor`. At rest they, and all that is
as large as they are (optimizer moments, the moving average), are split over `data` too. Batches are split over `slice`,
`data` and `fsdp`. A step then needs the least traffic there can be (ZeRO, arXiv 1910.02054):

    once a step     each device gathers the parameters over `data`, in the compute dtype;
    layer by layer  it gathers a layer's over `fsdp`, where it is used;
    once a step     gradients are summed in float32, each device receiving its own part only: over `data` within a
                    slice, round one ring of its torus after the other, and then that part over `slice`.

The step says all this itself, as functions run by each device on its own rows (`jax.shard_map`), rather than leave it to
XLA's partitioner, which would reduce gradients layer by layer, in bfloat16, and whole. `tensor` is left to it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deltalm_jax.model.attention import Attend, KeysValues, Mask
from deltalm_jax.parallel.mesh import DATA_AXES, MeshError

# libtpu 0.0.42 does not split every sum that it is asked to split: some it sums whole on every device and then cuts, at twice
# the traffic. Those it does split are not too large (bytes), have a power of two of rows, and are laid out to be cut in the
# second dimension of tiles. Found by compiling; `plan` shows what came of it.
_LARGEST_SCATTER = 140e6

BATCH_AXES = ("slice", *DATA_AXES, "fsdp")

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
    (r"(lm_head/dense|sentence_projection)/kernel", ("fsdp", None)),
    (r"lm_head/bias", ("tensor",)),
    (r"(output/bias|lm_head/dense/bias|layer_norm/(scale|bias))", (None,)),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text, "encoder/layers/feed_forward/input/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rule_for(name: str) -> tuple[str | None, ...]:
    """The table's split of a parameter's last dimensions.

    Raises:
      KeyError: no rule matches; a new parameter must be given a rule.
    """
    for pattern, axes in RULES:
        if re.search(f"(^|[/_]){pattern}$", name):
            return axes
    raise KeyError(f"no sharding rule for the parameter {name!r}: add one to RULES in {__name__}")


def parameter_specs(params: Any, mesh: Mesh) -> Any:
    """How each parameter (array or shape) is split at rest, as a tree like `params`.

    Matrices follow the table, and are split over `data` along the dimension that the table gives to `fsdp`, or else along
    the longest one that divides. Vectors are small, and whole unless the table says otherwise.

    Raises:
      MeshError: an axis of the mesh does not divide the dimension that it is to split.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        name, shape = path_name(path), tuple(np.shape(leaf))
        rule = rule_for(name)
        axes: tuple[str | None, ...] = (None,) * (len(shape) - len(rule)) + rule
        for size, axis in zip(shape, axes, strict=True):
            if axis and size % mesh.shape[axis]:
                raise MeshError(
                    f"{name} has a dimension of {size:,} to be split over MeshConfig.{axis}={mesh.shape[axis]}, which does "
                    f"not divide it: choose another {axis}"
                )
        split = P(*(axis if axis and mesh.shape[axis] > 1 else None for axis in axes))
        return split if len(rule) == 1 else _over_data(split, shape, mesh, axes.index("fsdp"))

    return jax.tree_util.tree_map_with_path(spec, params)


def _over_data(spec: P, shape: tuple[int, ...], mesh: Mesh, preferred: int | None) -> P:
    """The split, and one over `data`: of the preferred dimension, else of the longest that is whole; none if none divides."""
    axes = tuple(axis for axis in DATA_AXES if mesh.shape[axis] > 1)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if not axes:
        return spec
    for dimension in ([] if preferred is None else [preferred]) + sorted(range(len(shape)), key=lambda i: -shape[i]):
        if spec[dimension] is None and shape[dimension] % ways == 0:
            return P(*spec[:dimension], axes, *spec[dimension + 1 :])
        if spec[dimension] == "fsdp" and shape[dimension] % (mesh.shape["fsdp"] * ways) == 0:
            return P(*spec[:dimension], ("fsdp", *axes), *spec[dimension + 1 :])
    return spec


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a training state {"params", "optimizer", "step", …} (arrays or shapes), as a tree like it."""
    specs = parameter_specs(state["params"], mesh)
    by_name = {
        path_name(path): (tuple(np.shape(leaf)), spec)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(state["params"]), jax.tree.leaves(specs), strict=True
        )
    }

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        shape = tuple(np.shape(leaf))
        if path_name(path) == "contrast/queue":  # each device tells its part from all queries
            return batch_sharding(mesh)
        # An optimizer's leaves end in the path of their parameter: "optimizer/1/mu/encoder/…".
        endings = [path_name(path[i:]) for i in range(1, len(path))]
        parameter = next((by_name[name] for name in endings if name in by_name), None)
        if parameter is not None and parameter[0] == shape:
            return NamedSharding(mesh, parameter[1])
        # Adafactor's factored moments and constants have another shape, and little in them.
        return NamedSharding(mesh, _over_data(P(*[None] * len(shape)), shape, mesh, None))

    return jax.tree_util.tree_map_with_path(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `slice`, `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def by_shard(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` run by each device on its own shards, apart from the `tensor` axis, which stays the partitioner's.

    Args:
      function: of arrays; it may use the collectives of this module.
      mesh: the mesh.
      in_specs, out_specs: splits of arguments and results, as for `jax.shard_map`; mentions of `tensor` are left out.
    """
    if not split_axes(mesh):
        return function
    # Axes of one device are taken along: a TPU kernel runs only where no axis is left to the partitioner.
    axes = {axis for axis in mesh.axis_names if axis != "tensor" or mesh.shape[axis] == 1}

    def manual(spec: P) -> P:
        kept = ([axis for axis in _entry_axes(entry) if axis in axes] for entry in spec)
        return P(*(tuple(entry) or None for entry in kept))

    in_specs, out_specs = jax.tree.map(manual, (in_specs, out_specs), is_leaf=lambda x: isinstance(x, P))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def split_axes(mesh: Mesh) -> tuple[str, ...]:
    """Axes that a batch really is split over: those of `BATCH_AXES` with more than one device."""
    return tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)


def global_rows(rows: int, mesh: Mesh) -> jax.Array:
    """Inside `by_shard`: the numbers in the global batch of this device's rows; int32 [rows]."""
    axes = split_axes(mesh)
    first = jax.lax.axis_index(axes) * rows if axes else 0
    return first + jnp.arange(rows, dtype=jnp.int32)


def sum_over_batch(values: Any, mesh: Mesh) -> Any:
    """Inside `by_shard`: the sums over all devices that hold other rows of the batch."""
    axes = split_axes(mesh)
    return jax.lax.psum(values, axes) if axes else values


def gather_parameters(params: Any, specs: Any) -> Any:
    """Inside `by_shard`: parameters whole again, but for `tensor`, and for layers' split over `fsdp` (`gather_layer`)."""

    def gather(path: tuple[Any, ...], shard: jax.Array, spec: P) -> jax.Array:
        for dimension, axis in split_dimensions(spec, DATA_AXES if in_layers(path) else (*DATA_AXES, "fsdp")):
            shard = jax.lax.all_gather(shard, axis, axis=dimension, tiled=True)
        return shard

    return jax.tree_util.tree_map_with_path(gather, params, specs)


def gather_layer(layer: Any) -> Any:
    """Inside `by_shard`: one layer's parameters whole again; their gradients are summed, in float32, and split again."""

    def gather(path: tuple[Any, ...], shard: jax.Array) -> jax.Array:
        rule = rule_for(path_name(path))
        return _gather_over_fsdp(shard, rule.index("fsdp")) if "fsdp" in rule else shard

    return jax.tree_util.tree_map_with_path(gather, layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_over_fsdp(shard: jax.Array, dimension: int) -> jax.Array:
    return jax.lax.all_gather(shard, "fsdp", axis=dimension, tiled=True)


def _gather_over_fsdp_backward(dimension: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    summed = jax.lax.psum_scatter(gradient.astype(jnp.float32), "fsdp", scatter_dimension=dimension, tiled=True)
    return (summed.astype(gradient.dtype),)


_gather_over_fsdp.defvjp(
    lambda shard, dimension: (_gather_over_fsdp(shard, dimension), None), _gather_over_fsdp_backward
)


def reduce_gradients(gradients: Any, specs: Any, mesh: Mesh) -> Any:
    """Inside `by_shard`: gradients summed over all devices, each left with what `specs` gives it.

    Args:
      gradients: of this device's rows, by parameters as `gather_parameters` returns them.
      specs: of the parameters at rest.
      mesh: the mesh.
    """

    def reduce(path: tuple[Any, ...], gradient: jax.Array, spec: P) -> jax.Array:
        remaining = list(split_axes(mesh))
        for dimension, axis in reversed(split_dimensions(spec, (*DATA_AXES, "fsdp"))):
            remaining.remove(axis)
            if not (axis == "fsdp" and in_layers(path)):  # that was summed where the layer was gathered
                gradient = _sum_and_split(gradient, axis, dimension, mesh)
        return jax.lax.psum(gradient, tuple(remaining)) if remaining else gradient

    return jax.tree_util.tree_map_with_path(reduce, gradients, specs)


def _sum_and_split(values: jax.Array, axis: str, dimension: int, mesh: Mesh) -> jax.Array:
    if mesh.devices.flat[0].platform != "tpu":
        return jax.lax.psum_scatter(values, axis, scatter_dimension=dimension, tiled=True)
    along, *others = (i for i in range(values.ndim) if i != dimension)
    length, row_bytes = values.shape[along], values.size // values.shape[along] * values.dtype.itemsize
    rows = 2 ** max(0, math.floor(math.log2(_LARGEST_SCATTER / row_bytes)))
    # Cut in the second dimension of tiles (of 8), not in the last (of 128).
    *outer, last = along, *others
    layout = Layout(major_to_minor=(*outer, dimension, last))
    parts = jnp.split(values, list(range(rows, length, rows)), axis=along)
    parts = [
        jax.lax.psum_scatter(with_layout_constraint(part, layout), axis, scatter_dimension=dimension, tiled=True)
        for part in parts
    ]
    return jnp.concatenate(parts, axis=along)


def split_dimensions(spec: P, wanted: tuple[str, ...]) -> list[tuple[int, str]]:
    """(dimension, axis) of the wanted axes, in the order to gather in: of a dimension split twice the inner split first."""
    return [
        (dimension, axis)
        for dimension, entry in enumerate(spec)
        for axis in reversed(_entry_axes(entry))
        if axis in wanted
    ]


def _entry_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes that a dimension is split over, the outer first."""
    return (entry,) if isinstance(entry, str) else entry or ()


def spec_axes(spec: P) -> set[str]:
    """All mesh axes that an array is split over."""
    return {axis for entry in spec for axis in _entry_axes(entry)}


def in_layers(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is one of stacked layers, which are gathered over `fsdp` one by one."""
    return "layers" in path_name(path).split("/")


def map_over_heads(attend: Attend, mesh: Mesh) -> Attend:
    """Inside `by_shard`: attention run by each device of `tensor` on its own heads; the partitioner cannot split a kernel.

    Where `tensor` does not divide the heads, each of its devices computes them all.
    """
    if mesh.shape["tensor"] == 1:
        return attend

    def attend_by_head(query_BTHK: jax.Array, seen: KeysValues, mask: Mask) -> jax.Array:
        by_head = P(None, None, "tensor" if query_BTHK.shape[2] % mesh.shape["tensor"] == 0 else None, None)
        arrays = {"real_BS": mask.real_BS} | ({} if mask.segments is None else {"segments": mask.segments})
        return jax.shard_map(
            lambda query_BTHK, seen, arrays: attend(query_BTHK, seen, mask._replace(**arrays)),
            mesh=None if split_axes(mesh) else mesh,  # None: the mesh of the `shard_map` around this one
            in_specs=(by_head, by_head, P()),
            out_specs=by_head,
            axis_names={"tensor"},
            check_vma=False,
        )(query_BTHK, seen, arrays)

    return attend_by_head


def check_batch(batch_sizes: dict[str, int], mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raises MeshError if a group's batch does not divide evenly over the devices that share it and the microbatches."""
    devices = int(np.prod([mesh.shape[a] for a in BATCH_AXES]))
    ways = devices * accumulation_steps
    for name, size in batch_sizes.items():
        if size % ways:
            times = f" × {accumulation_steps} microbatches" if accumulation_steps > 1 else ""
            raise MeshError(
                f"objective_batch_sizes[{name!r}] is {size}, which does not divide over slices × data × fsdp = {devices} "
                f"devices{times}: use a multiple of {ways}, or move devices to the tensor axis"
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
