"""Checkpoints: orbax writes the arrays, a record written last says that they are whole.

`RUN_DIR/checkpoints/STEP/state/` is orbax's; `RUN_DIR/checkpoints/STEP/record.json` is ours, written after orbax has
finished, with every file's size and digest. orbax restores flipped bits without a word and takes an empty folder for
the newest step; so a step counts only if its record verifies, and the newest that does is taken.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from deltalm_jax.data.shards import digest_file, sync, write_atomically
from deltalm_jax.errors import UserError
from deltalm_jax.fault_points import reached
from deltalm_jax.parallel.sharding import path_name

FORMAT = 1


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written or used; the message names it and says what to do."""


class SavedSteps:
    """The checkpoints of a run directory, to be read; nothing is written or removed.

    Args:
      directory: `RUN_DIR/checkpoints`.
      warn: takes one line of text when a damaged step is passed over.
    """

    def __init__(self, directory: pathlib.Path, warn: Callable[[str], None]) -> None:
        self.directory, self.warn = directory.absolute(), warn  # orbax wants an absolute path

    def steps(self) -> list[int]:
        """Steps that have a record, ascending. What has none was never finished, or is not ours."""
        return sorted(int(p.parent.name) for p in self.directory.glob("*/record.json") if p.parent.name.isdigit())

    def latest(self) -> dict[str, Any] | None:
        """The record of the newest step that verifies, or None if there is no checkpoint at all.

        Raises:
          CheckpointError: there are checkpoints, but none verifies.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.verify(step)
            except CheckpointError as error:
                self.warn(f"WARNING: checkpoint {step} is passed over: {error}")
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} verifies ({', '.join(map(str, steps))}); restore them from a "
                "copy, or start again in another --run_dir"
            )
        return None

    def verify(self, step: int) -> dict[str, Any]:
        """Reads a step's record and checks every file's size and digest against it.

        Raises:
          CheckpointError: names the file that is missing, has another size, or another content.
        """
        folder = self.directory / str(step)
        try:
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            files, version = record["files"], record["format"]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder / 'record.json'} cannot be read: {error!r}") from error
        if version != FORMAT:
            raise CheckpointError(f"{folder} has checkpoint format {version}; this version reads format {FORMAT}")
        for name, wanted in files.items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing")
            if path.stat().st_size != wanted["bytes"]:
                raise CheckpointError(f"{path} has {path.stat().st_size} bytes, its record says {wanted['bytes']}")
            if digest_file(path) != wanted["xxh3"]:
                raise CheckpointError(f"the content of {path} has changed since it was written (digest differs)")
        return record

    def restore_part(self, record: dict[str, Any], part: str, abstract: Any) -> Any:
        """Reads a part of a verified step's state, such as "params", into the shardings of `abstract`.

        Args:
          record: from `latest` or `verify`.
          part: key at the top of the state.
          abstract: tree of `jax.ShapeDtypeStruct`; leaves without a sharding are put on the default device.

        Raises:
          CheckpointError: the trees differ; names the leaves.
        """
        prefix = f"{part}/"
        saved = {k.removeprefix(prefix): leaf for k, leaf in record["leaves"].items() if k.startswith(prefix)}
        _check_leaves(saved, _leaves(abstract), f"{part} of checkpoint {record['step']}")
        default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        item = {
            part: jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or default), abstract
            )
        }
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            arguments = ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            )
            return orbax.restore(self.directory / str(record["step"]) / "state", args=arguments)[part]


class Checkpoints(SavedSteps):
    """The checkpoints of one run directory, to be written and read.

    Args:
      directory: `RUN_DIR/checkpoints`; made if absent.
      keep: newest steps kept.
      keep_every: steps at multiples of this are kept for good; None keeps none so.
      warn: takes one line of text when a damaged step is passed over.
    """

    def __init__(self, directory: pathlib.Path, keep: int, keep_every: int | None, warn: Callable[[str], None]):
        super().__init__(directory, warn)
        self.keep, self.keep_every = keep, keep_every
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            for left_over in self.directory.glob(".deleting-*"):
                shutil.rmtree(left_over)
        self._orbax = ocp.StandardCheckpointer()
        self._commits = concurrent.futures.ThreadPoolExecutor(1, "checkpoint-commit")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        """Begins saving; returns when the arrays are copied off the devices. All processes must call it.

        Args:
          step: updates done.
          state: tree of (global) arrays.
          about: JSON-able facts for the record (configuration, data …).

        Raises:
          CheckpointError: the previous save had failed.
        """
        self.wait()
        reached("save/begin", step)
        folder = self.directory / str(step)
        if jax.process_index() == 0 and folder.exists():  # unfinished, or damaged and passed over on resume
            self._remove(folder)
        # The next step donates these arrays. orbax holds views or copies of them, which jax leaves alone (tested).
        self._orbax.save(folder / "state", state)
        record = {"format": FORMAT, "step": step, "leaves": _leaves(state), "about": about}
        self._pending = self._commits.submit(self._commit, folder, record)

    def wait(self) -> None:
        """Blocks until the pending save is on disk with its record; raises CheckpointError if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise CheckpointError(f"the checkpoint begun last was not saved: {error}") from error

    def check(self) -> None:
        """Raises CheckpointError as soon as a pending save is known to have failed; never blocks."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Waits for the pending save and frees orbax's threads."""
        self.wait()
        self._commits.shutdown()
        self._orbax.close()

    def restore(self, record: dict[str, Any], abstract: Any) -> Any:
        """Reads the arrays of a verified step into the shardings of `abstract`.

        Args:
          record: from `latest` or `verify`.
          abstract: tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          CheckpointError: the trees differ; names the leaves.
        """
        _check_leaves(record["leaves"], _leaves(abstract), f"checkpoint {record['step']}")
        return self._orbax.restore(self.directory / str(record["step"]) / "state", abstract)

    def _commit(self, folder: pathlib.Path, record: dict[str, Any]) -> None:
        self._orbax.wait_until_finished()
        reached("save/written", record["step"])
        if jax.process_index() != 0:
            return
        paths = sorted(p for p in (folder / "state").rglob("*") if p.is_file())
        for path in paths:  # the record must not reach the disk before what it vouches for
            sync(path)
        record["files"] = {
            str(p.relative_to(folder)): {"bytes": p.stat().st_size, "xxh3": digest_file(p)} for p in paths
        }
        reached("save/record", record["step"])
        write_atomically(folder / "record.json", json.dumps(record, indent=1))
        reached("save/retire", record["step"])
        self._prune(record["step"])

    def _prune(self, newest: int) -> None:
        """Applies the keep rules to steps up to `newest`, just saved; removes what never was, or is no longer, a checkpoint.

        Later steps are damaged ones that resuming has passed over: counted in, they would push out good ones.
        """
        whole = [step for step in self.steps() if step <= newest]
        kept = {*whole[-self.keep :], *(s for s in whole if self.keep_every and s % self.keep_every == 0)}
        for folder in self.directory.iterdir():
            if folder.name.isdigit() and int(folder.name) not in kept:
                self._remove(folder)

    def _remove(self, folder: pathlib.Path) -> None:
        # Renamed first: a kill in the middle must not leave a half-deleted step under a name that counts.
        away = folder.with_name(f".deleting-{folder.name}-{os.getpid()}")
        folder.rename(away)
        reached("save/delete", int(folder.name))
        shutil.rmtree(away)


def newest_checkpoint(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Process 0's choice of checkpoint, the same on all processes."""
    if jax.process_count() == 1:
        return checkpoints.latest()
    chosen = (checkpoints.latest() or {"step": -1})["step"] if jax.process_index() == 0 else -1
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return None if chosen < 0 else checkpoints.verify(chosen)


def _leaves(tree: Any) -> dict[str, list[Any]]:
    """{path: [shape, dtype]} of a tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): [list(np.shape(leaf)), str(leaf.dtype)] for path, leaf in leaves}


def _check_leaves(saved: dict[str, list[Any]], wanted: dict[str, list[Any]], what: str) -> None:
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
