"""Going on with a run: what must be as it was, and where in its data the run stands."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from deltalm_jax.data.shards import write_atomically
from deltalm_jax.fields import is_operational
from deltalm_jax.parallel.sharding import path_name
from deltalm_jax.redaction import same_but_for_secrets
from deltalm_jax.training.checkpoint import CheckpointError
from deltalm_jax.training.config import Config
from deltalm_jax.training.data_order import DataOrder
from deltalm_jax.training.guards import LossSpike


def check_identity(
    saved: dict[str, Any], wanted: dict[str, Any], run_dir: pathlib.Path, allowed: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Compares what a run was with what it is to go on as.

    A field that the checkpoint does not know, for the field is younger, is taken to have had its default. The order of a
    table counts: of patterns, the first that fits decides.

    Args:
      saved: identity in the checkpoint's record.
      wanted: identity of this run, from `describe`.
      run_dir: for the message.
      allowed: names that may differ.

    Returns:
      The differences that were allowed: {"name", "was", "is"} each.

    Raises:
      CheckpointError: something else differs (with the differences), or a name that is allowed is none.
    """
    wanted = json.loads(json.dumps(wanted))
    saved = {name: value for name, value in _defaults().items() if name in wanted} | saved
    names = sorted(saved.keys() | wanted.keys())
    if unknown := [name for name in allowed if name not in names]:
        raise CheckpointError(
            f"--allow_config_change={unknown[0]}: there is no such name; names are {', '.join(names)}"
        )
    changes = [
        {"name": name, "was": saved.get(name), "is": wanted.get(name)}
        for name in names
        if not same_but_for_secrets(saved.get(name), wanted.get(name))
    ]
    if refused := [change for change in changes if change["name"] not in allowed]:
        lines = "\n".join(f"  {c['name']}: {c['was']!r} in the checkpoint, {c['is']!r} now" for c in refused)
        flags = " ".join(f"--allow_config_change={c['name']}" for c in refused)
        raise CheckpointError(
            f"the run in {run_dir} was started with another configuration; going on would make it a different run:\n{lines}\n"
            "Put the values back, or start a new run with another --run_dir. A change that is meant is accepted by name, and "
            f"goes on record:\n  {flags}"
        )
    return changes


def _defaults() -> dict[str, Any]:
    """The identity fields of all configuration classes, at their defaults, as in a record."""
    values = {
        f"{cls.__name__}.{field.name}": field.default if factory is dataclasses.MISSING else factory()
        for cls in typing.get_type_hints(Config).values()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls)
        for field in dataclasses.fields(cls)
        for factory in [field.default_factory]
        if not is_operational(field)
    }
    return json.loads(json.dumps({k: v for k, v in values.items() if v is not dataclasses.MISSING}))


def check_counters(state: Any, record: dict[str, Any]) -> None:
    """Compares the counters of a restored state, which must all have counted the same updates.

    Args:
      state: a training state with "step", "optimizer" and, where steps can be skipped, "skipped" {"total", …}. All int32
        scalars named "count" of the optimizer count the updates that were not skipped.
      record: the record of its checkpoint.

    Raises:
      CheckpointError: they disagree; names the leaf and the numbers.
    """
    step = record["step"]
    skipped = int(state["skipped"]["total"]) if "skipped" in state else 0
    wanted = {"step": (int(state["step"]), step)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["optimizer"]):
        name = path_name(path)
        if name.rpartition("/")[2] == "count" and leaf.dtype == np.int32 and np.shape(leaf) == ():
            wanted[f"optimizer/{name}"] = int(leaf), step - skipped
    wrong = [f"{name} is {found}, expected {right}" for name, (found, right) in wanted.items() if found != right]
    if not 0 <= skipped <= step:
        wrong.append(f"skipped/total is {skipped}, of {step} steps")
    if wrong:
        raise CheckpointError(
            f"the state of checkpoint {step} is at odds with itself: {'; '.join(wrong)} (its record says step {step}, of "
            f"which {skipped} were skipped); move that step away to go on from an older one"
        )


def place_in_data(record: dict[str, Any], skipped_data: dict[int, int]) -> tuple[DataOrder, list[float]]:
    """What a run leaves out of its data, and its latest losses, from a checkpoint's record.

    Args:
      record: the record.
      skipped_data: `TrainConfig.skipped_data`, which may have been changed.

    Raises:
      CheckpointError: the record's step and its place in the data do not agree.
    """
    step, about = record["step"], record["about"]
    try:
        order = DataOrder.of(about["data"]["skipped"])
        found, wanted = about["data"]["next_batch"], order.batch_of(step)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the record of checkpoint {step} does not say where its data go on: {error!r}"
        ) from error
    if found != wanted:
        raise CheckpointError(
            f"checkpoint {step} is at odds with itself: its data go on at batch {found}, but {step} steps without the "
            f"batches {about['data']['skipped']} come to batch {wanted}; move that step away to go on from an older one"
        )
    for first, end in DataOrder.of(skipped_data).windows:
        if end > found:  # of a change that was allowed, only what still lies ahead
            order = order.without(max(first, found), end)
    return order, about.get("recent_losses", [])


def note_rewind(
    spike: LossSpike, back_to: int, window: tuple[int, int], after: DataOrder, run_dir: pathlib.Path
) -> str:
    """Adds a line to RUN_DIR/rewinds.jsonl: step and loss of the spike, the step gone back to, and all batches left out now.

    Args:
      spike: what happened.
      back_to: the checkpoint's step.
      window: the batches that are left out from now on: first, and one past the last.
      after: all that are.
      run_dir: the run's folder.

    Returns:
      What happens, in words.
    """
    if jax.process_index() == 0:
        path = run_dir / "rewinds.jsonl"
        lines = path.read_text(encoding="utf-8") if path.exists() else ""
        line = {"step": spike.step, "loss": spike.loss, "median": spike.median, "back_to": back_to}
        write_atomically(path, lines + json.dumps(line | {"skipped_data": after.as_json()}) + "\n")
    return f"WARNING: {spike}; going back to step {back_to:,}, without the batches {window[0]} to {window[1] - 1}"
