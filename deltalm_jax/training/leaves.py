"""A state's leaves, compared with what was saved: names, shapes and dtypes before it is read, shardings too after it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.training.checkpoint_record import CheckpointError


def leaves_of(tree: Any) -> dict[str, list[Any]]:
    """{path: [shape, dtype]} of a tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): [list(np.shape(leaf)), str(leaf.dtype)] for path, leaf in leaves}


def check_leaves(saved: dict[str, list[Any]], wanted: dict[str, list[Any]], what: str) -> None:
    """Raises CheckpointError, which names leaves, if two results of `leaves_of` differ; `what` is whose the first one is."""
    differences = [
        f"{name}: checkpoint {_show(saved.get(name))}, this run {_show(wanted.get(name))}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        more = f" (and {len(differences) - 5} more)" if len(differences) > 5 else ""
        raise CheckpointError(f"{what} does not fit this run: {'; '.join(differences[:5])}{more}")


def _show(leaf: list[Any] | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "has no such leaf"


def checked(restored: Any, abstract: Any, what: str) -> Any:
    """The restored tree, if every leaf has the dtype and the sharding asked for: orbax would cast without a word."""
    for (path, leaf), target in zip(
        jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(abstract), strict=True
    ):
        if leaf.dtype != target.dtype or leaf.shape != target.shape:
            raise CheckpointError(
                f"{what}: {path_name(path)} was read as {leaf.dtype}{list(leaf.shape)}, not as "
                f"{target.dtype}{list(target.shape)}"
            )
        if target.sharding is not None and not leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim):
            raise CheckpointError(f"{what}: {path_name(path)} was read onto {leaf.sharding}, not {target.sharding}")
    return restored
