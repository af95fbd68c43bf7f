"""Checkpoints written: orbax writes the arrays, a record written last says that they are whole.

orbax restores flipped bits without a word, casts dtypes without a word, and takes an empty folder for the newest step; so
a step counts only if its record (`checkpoint_record.py`) verifies, the newest that does is taken, and leaves are compared
before anything is read (`saved_steps.py`). A save goes in this order:

    arrays copied off the devices                   the run waits for this, and for the save before
    orbax writes them: state.orbax-checkpoint-tmp…, renamed to state
    all files and folders put on disk, digests taken
    record.json                                     from here on the step counts
    record read back, sizes compared                only then
    older steps retired                             renamed to .deleting-…, then deleted

In a bucket nothing is renamed (`storage.py`): orbax writes into state and a commit file last, and of an older step the
record is deleted first. A failure before the record is on disk removes what was written of that step and touches no other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from deltalm_jax.fault_points import reached
from deltalm_jax.parallel.agreement import is_as_on_first_process, of_first_process
from deltalm_jax.paths import is_remote, store_errors
from deltalm_jax.training.checkpoint_record import (
    RECORD,
    CheckpointError,
    UnreadableError,
    digest_files,
    files_below,
    is_removable,
    printable,
    step_of,
    write_record,
)
from deltalm_jax.training.faults import EXIT_LOST
from deltalm_jax.training.leaves import check_leaves, checked, leaves_of
from deltalm_jax.training.saved_steps import SavedSteps
from deltalm_jax.training.storage import check_name, storage_of

# Of a save in all, in the background: orbax gives up after it (by itself after 20 minutes).
_SAVE_SECONDS = 2 * 3600
# Until what process 0 has written is seen by all.
_SEEN_SECONDS = 60.0

__all__ = ["CheckpointError", "Checkpoints", "newest_checkpoint"]


class Checkpoints(SavedSteps):
    """The checkpoints of one run directory, to be written and read. The directory must have no other owner.

    What an earlier run left unfinished is removed. Whatever else is there, links among it, is named and left alone.

    Args:
      directory: `RUN_DIR/checkpoints`; made if absent.
      keep: newest steps kept.
      keep_every: steps at multiples of this are kept for good; None keeps none so.
      warn: takes one line of text when something is passed over, removed or left alone.
      before_record: called on process 0, in the background, when all of a step but its record is saved; an OSError of
        theirs fails the save.

    Raises:
      CheckpointError: the directory cannot be made or written to.
      LocationError: what is written below a directory of this name could not be read.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int,
        keep_every: int | None,
        warn: Callable[[str], None],
        before_record: Sequence[Callable[[], None]] = (),
    ):
        super().__init__(directory, warn)
        check_name(self.directory)
        self.keep, self.keep_every, self._before_record = keep, keep_every, before_record
        self._storage = storage_of(self.directory)
        if jax.process_index() == 0:
            try:
                with store_errors():
                    self._storage.make(self.directory)
                    self._clean_up()
            except OSError as error:
                raise CheckpointError(f"no checkpoint can be saved in {self.directory}: {_cause(error)}") from error
        self._orbax = ocp.StandardCheckpointer(async_options=ocp.options.AsyncOptions(timeout_secs=_SAVE_SECONDS))
        self._commits = concurrent.futures.ThreadPoolExecutor(1, "checkpoint-commit")
        self._pending: concurrent.futures.Future[None] | None = None
        self._saving, self._ending = -1, ""
        self._best: int | None = None

    def save(
        self,
        step: int,
        state: Any,
        about: dict[str, Any],
        *,
        temporary: bool = False,
        ending: str = "",
        best: int | None = None,
    ) -> None:
        """Begins saving; returns when the arrays are copied off the devices. All processes must call it.

        Args:
          step: updates done.
          state: tree of (global) arrays.
          about: JSON-able facts for the record (configuration, data …).
          temporary: whether it is retired as soon as a newer step is saved, and does not count among the `keep`.
          ending: for the last save of a run, how it ended: "the run finished". Should the save fail, the error then says
            "the run finished, but step N is not saved: …".
          best: a step that is kept whatever the rules say, until another is named; None keeps none so.

        Raises:
          CheckpointError: the previous save had failed, or this one cannot begin.
        """
        self.wait()
        reached("save/begin", step)
        folder = self.folder(step)
        self._saving, self._ending, self._best = step, ending, best
        record = {
            "written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
            "step": step,
            "temporary": temporary,
            "leaves": leaves_of(state),
            "about": about,
        }
        try:
            with store_errors():
                if jax.process_index() == 0:
                    self._make_way(folder)
                # The next step donates these arrays. orbax holds views or copies of them, which jax leaves alone (tested).
                self._orbax.save(self.state_path(step), state)
        except Exception as error:
            self._discard(folder)
            raise self._failure(error) from error
        self._pending = self._commits.submit(self._commit_or_discard, folder, record)

    def wait(self) -> None:
        """Blocks until the pending save is on disk with its record.

        Raises:
          CheckpointError: it failed. Names the folder and the cause; older steps are as they were.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._failure(error) from error

    def check(self) -> None:
        """Raises CheckpointError as soon as a pending save is known to have failed; never blocks."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            self.warn(f"WARNING: {failure}")  # what ends the run is the other error

    def close(self) -> None:
        """Waits for the pending save and frees orbax's threads; raises CheckpointError if the save failed."""
        try:
            self.wait()
        finally:
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
        what = f"checkpoint {record['step']}"
        check_leaves(record["leaves"], leaves_of(abstract), what)
        return checked(self._orbax.restore(self.state_path(record["step"]), abstract), abstract, what)

    def _commit_or_discard(self, folder: pathlib.Path, record: dict[str, Any]) -> None:
        try:
            self._commit(folder, record)
        except Exception:
            self._discard(folder)
            raise
        if jax.process_index() != 0:  # process 0 alone knows when the newer step is safe
            return
        reached("save/retire", record["step"])
        try:
            with store_errors():
                self._prune(record["step"])
        except OSError as error:
            self.warn(f"WARNING: step {record['step']} is saved, but an older one cannot be removed: {_cause(error)}")

    def _commit(self, folder: pathlib.Path, record: dict[str, Any]) -> None:
        with store_errors():
            self._orbax.wait_until_finished()
        step = record["step"]
        reached("save/written", step)
        if jax.process_index() != 0:
            return
        sizes = files_below(folder)
        self._storage.settle(folder, [*sizes])
        digests = digest_files(folder, sizes)
        record["files"] = {name: {"bytes": sizes[name], "xxh3": digest} for name, digest in digests.items()}
        for act in self._before_record:
            act()
        reached("save/record", step)
        write_record(folder, record)
        # The digests are of what was read back just now, so sizes do; the record itself is read, by its own digest.
        self.verify(step, digests=False)

    def _failure(self, error: Exception) -> CheckpointError:
        step = self._saving
        try:
            saved = self.steps()
        except UnreadableError as unreadable:  # a store that does not answer: no news of it beside its own error
            what, left = f"step {step} is not saved", str(unreadable)
        else:
            what = (
                f"step {step} is saved, but older ones cannot be retired"
                if step in saved
                else f"step {step} is not saved"
            )
            left = f"the newest saved step is {saved[-1]}" if saved else "no step is saved"
        failure = CheckpointError(
            f"{f'{self._ending}, but ' if self._ending else ''}{what}: {_cause(error)} ({self.folder(step)}; {left})"
        )
        if is_remote(self.directory) and not re.search("Forbidden|PERMISSION_DENIED", str(error)):
            failure.exit_code = EXIT_LOST  # an outage passes, where a full disk needs a person: start the run again
        return failure

    def _discard(self, folder: pathlib.Path) -> None:
        """Removes what a failed save has left of its step, as far as that can be done."""
        with contextlib.suppress(Exception):
            self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        try:
            with store_errors():
                if self._storage.exists(folder) and is_removable(folder):
                    self._remove(folder)
        except OSError as error:
            self.warn(f"WARNING: {folder} is left unfinished: {_cause(error)}")

    def _clean_up(self) -> None:
        """Removes what killed runs left: half-deleted steps, and steps that have no record."""
        for entry in self._storage.entries(self.directory):
            unfinished = step_of(entry) is not None and not self._storage.exists(entry / RECORD)
            if re.fullmatch(r"\.deleting-[0-9]+-[0-9a-f]+", entry.name) and not entry.is_symlink():
                shutil.rmtree(entry)
            elif unfinished and is_removable(entry):
                self.warn(f"WARNING: checkpoint {entry.name} was never finished, and is removed")
                self._remove(entry)
            elif step_of(entry) is None or unfinished:
                self.warn(f"WARNING: {printable(entry)} is no checkpoint of this run's: it is ignored")

    def _make_way(self, folder: pathlib.Path) -> None:
        """Removes an unfinished or damaged step (passed over on resume) of this name; sets anything else aside."""
        if not self._storage.exists(folder):
            return
        if is_removable(folder):
            self._remove(folder)
            return
        number = 1
        while self._storage.exists(aside := folder.with_name(f"{folder.name}.set-aside-{number}")):
            number += 1
        self._storage.rename(folder, aside)
        self.warn(f"WARNING: {folder} was no checkpoint of this run's: it is now {aside}")

    def _prune(self, newest: int) -> None:
        """Applies the keep rules to steps up to `newest`, just saved; removes what is no longer a checkpoint.

        Later steps are damaged ones that resuming has passed over: counted in, they would push out good ones, as would
        older ones that have lost a file since.
        """
        kept, whole = {newest, self._best}, 0
        for step in sorted((step for step in self.steps() if step <= newest), reverse=True):
            if self.keep_every and step % self.keep_every == 0:
                kept.add(step)
            if whole < self.keep and self._is_lasting(step):
                kept.add(step)
                whole += 1
        for folder in self._storage.entries(self.directory):
            if (step_of(folder) not in {None, *kept}) and is_removable(folder):
                self._remove(folder)

    def _is_lasting(self, step: int) -> bool:
        """Whether a step has all its files, and is not a temporary one."""
        try:
            return not self.verify(step, digests=False).get("temporary")
        except UnreadableError:
            return True
        except CheckpointError:
            return False

    def _remove(self, folder: pathlib.Path) -> None:
        self._storage.remove(folder, int(folder.name), RECORD)


def newest_checkpoint(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Process 0's choice of checkpoint, the same on all processes.

    Raises:
      CheckpointError: as `SavedSteps.latest`; or another process does not find process 0's choice, or finds another.
    """
    if jax.process_count() == 1:
        return checkpoints.latest()
    record = checkpoints.latest() if jax.process_index() == 0 else None
    step = of_first_process(record["step"] if record else -1)
    if step < 0:
        return None
    if record is None:  # process 0 has read all of it; the others need not
        record = _as_soon_as_seen(lambda: checkpoints.verify(step, digests=False))
    if not is_as_on_first_process(record["digest"]):
        raise CheckpointError(
            f"process {jax.process_index()} finds another checkpoint {step} in {checkpoints.directory} than process 0: put "
            "the run directory where all processes see the same files"
        )
    return record


def _as_soon_as_seen(verify: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A network file system shows what another host has written with a delay."""
    deadline = time.monotonic() + _SEEN_SECONDS
    while True:
        try:
            return verify()
        except CheckpointError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _cause(error: BaseException) -> str:
    """What went wrong, readable: the system's words where it was the system's doing, else the first line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{printable(error.filename)}: {error.strerror}" if error.filename else error.strerror
    text = str(error) or repr(error)
    if code := re.search(r"os_error_code='([0-9]+)'", text):  # TensorStore's, after a page of its own state
        return os.strerror(int(code[1]))
    return printable(text.partition("\n")[0])
