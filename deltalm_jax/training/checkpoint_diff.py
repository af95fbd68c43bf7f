"""Two checkpoints side by side: configuration, tree, and how far each array is from the other's.

Arrays are read a few at a time and compared on the host: states that fill a pod fit on a laptop, leaf by leaf.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.training.checkpoint_record import CheckpointError
from deltalm_jax.training.saved_steps import SavedSteps

_GROUP_BYTES = 256 << 20
_BLOCK = 1 << 22
_ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class LeafChange:
    """How a leaf differs.

    Attributes:
      name: its path.
      relative: ‖b - a‖ / ‖a‖ over the whole leaf, in float64; 0 only if the two are equal bit for bit or differ in the
        signs of zeros; infinite if `a` is all zeros; NaN if either has a number that is not finite.
      values: the two values of a scalar, else None.
    """

    name: str
    relative: float
    values: tuple[Any, Any] | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between two checkpoints; see `compare`.

    Attributes:
      identity: {key: (in a, in b)} of the configuration's identity.
      tree: {leaf: (in a, in b)} where one is absent or has another shape or dtype, as text.
      leaves: the others that are not equal bit for bit, largest change first; what is not finite comes before.
      equal: how many leaves are equal bit for bit.
    """

    identity: dict[str, tuple[Any, Any]]
    tree: dict[str, tuple[str, str]]
    leaves: list[LeafChange]
    equal: int


def compare(a: tuple[SavedSteps, dict[str, Any]], b: tuple[SavedSteps, dict[str, Any]]) -> Difference:
    """Compares two verified steps.

    Args:
      a, b: a run's checkpoints, and the record of a step there, from `verify`.

    Raises:
      CheckpointError: an array is not what the record says.
    """
    identities = [record["about"].get("identity") for _, record in (a, b)]
    ours, theirs = (identity if isinstance(identity, dict) else {} for identity in identities)
    identity = {
        key: (ours.get(key, _ABSENT), theirs.get(key, _ABSENT))
        for key in sorted({*ours} | {*theirs})
        if ours.get(key, _ABSENT) != theirs.get(key, _ABSENT)
    }
    leaves_a, leaves_b = a[1]["leaves"], b[1]["leaves"]
    tree = {
        name: (_text(leaves_a.get(name)), _text(leaves_b.get(name)))
        for name in sorted({*leaves_a} | {*leaves_b})
        if leaves_a.get(name) != leaves_b.get(name)
    }
    names = [name for name in leaves_a if name not in tree]
    changes = [change for group in _groups(names, leaves_a) for change in _changes(a, b, group)]
    changes.sort(key=lambda change: (not math.isnan(change.relative), -change.relative, change.name))
    return Difference(identity, tree, changes, len(names) - len(changes))


def _changes(
    a: tuple[SavedSteps, dict[str, Any]], b: tuple[SavedSteps, dict[str, Any]], names: list[str]
) -> Iterator[LeafChange]:
    arrays_a, arrays_b = read_leaves(*a, names), read_leaves(*b, names)
    for name in names:
        ours, theirs = arrays_a.pop(name), arrays_b.pop(name)
        if not np.array_equal(ours.reshape(-1).view(np.uint8), theirs.reshape(-1).view(np.uint8)):
            values = (ours.item(), theirs.item()) if ours.ndim == 0 else None
            yield LeafChange(name, _relative_change(ours, theirs), values)


def read_leaves(steps: SavedSteps, record: dict[str, Any], names: list[str]) -> dict[str, np.ndarray]:
    """Some arrays of a verified step, whole and on the host, whatever devices they were saved from.

    Args:
      steps: the run's checkpoints.
      record: the step's record.
      names: paths of leaves.

    Raises:
      CheckpointError: an array has not the shape and dtype that the record says, or cannot be read.
    """
    folder = steps.state_path(record["step"])
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            tree = orbax.metadata(folder).item_metadata.tree
            wanted = {*names}
            item = jax.tree_util.tree_map_with_path(
                lambda path, _: 0 if path_name(path) in wanted else ocp.PLACEHOLDER, tree
            )
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = orbax.restore(folder, args=ocp.args.PyTreeRestore(item=item, restore_args=how))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}
    found = {name: np.asarray(leaves[name]) for name in names if name in leaves}
    for name in names:
        saved = record["leaves"][name]
        if name not in found or [list(found[name].shape), str(found[name].dtype)] != saved:
            raise CheckpointError(f"{folder}: {name} is not the {_text(saved)} that the record says")
    return found


def _groups(names: list[str], leaves: dict[str, Any]) -> Iterator[list[str]]:
    """Names in order, in groups of so many bytes, or of one large leaf."""
    group, size = list[str](), 0
    for name in names:
        shape, dtype = leaves[name]
        bytes_ = math.prod(shape) * jax.numpy.dtype(dtype).itemsize
        if group and size + bytes_ > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += bytes_
    if group:
        yield group


def _relative_change(a: np.ndarray, b: np.ndarray) -> float:
    """‖b - a‖ / ‖a‖, block by block in float64."""
    a, b = a.reshape(-1), b.reshape(-1)
    change, norm = 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, a.size, _BLOCK):
            ours, theirs = (x[start : start + _BLOCK].astype(np.float64) for x in (a, b))
            change += float(np.sum(np.square(theirs - ours)))
            norm += float(np.sum(np.square(ours)))
    if not math.isfinite(change + norm):
        return math.nan
    return math.sqrt(change / norm) if norm else math.inf if change else 0.0


def _text(leaf: list[Any] | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else _ABSENT
