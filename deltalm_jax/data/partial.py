"""The folder in which prepared data grow: locked, reused by the run that goes on with it, published when it is complete.

    OUTPUT.partial/.lock                  held by the process that prepares (on a file system of this machine)
    OUTPUT.partial/KEY/                   shards, in the layout of prepared data
    OUTPUT.partial/KEY.work/              records of what is finished (`finished`), and what KEY stands for

KEY is a digest of all that decides what a shard holds but the text itself: vocabulary, settings, code. So what workers of
different runs write never mixes, not even where a worker outlives its run; and a run that was ended goes on.

On a file system, publishing is renaming KEY to OUTPUT. In an object store it is copying each object inside the store and
writing the manifest last; there is no lock there, so two runs at once do the same work twice, to the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

from deltalm_jax.data.chunks import MANIFEST
from deltalm_jax.data.finished import Finished
from deltalm_jax.data.shards import sync, write_atomically
from deltalm_jax.errors import UserError
from deltalm_jax.paths import files_below, is_remote, make_folder, names_below, remove_tree

# How the filters' passes begin the name of what says that a part has been looked through for duplicates.
LOOKED_THROUGH = "done-"
_LOCK, _WORK, _PLAN, _PUBLISHING = ".lock", ".work", "plan.json", "publishing"
_COPIES_AT_ONCE = 32


class PreparationError(UserError, ValueError):
    """Preparation cannot start or go on; the message is for the person who started it."""


@dataclasses.dataclass(frozen=True)
class Partial:
    """Prepared data that are being made; see `open_partial`.

    Attributes:
      output: where they will be.
      folder: where they grow.
      records: where the records of what is finished are.
    """

    output: Path
    folder: Path
    records: Path

    @property
    def finished(self) -> Finished:
        """What is finished."""
        return Finished(self.records, self.folder)

    def publish(self, files: Iterable[str], write_manifest: Any) -> None:
        """Puts complete data in their final place, instead of what is there.

        Args:
          files: of the data, relative to the folder: all but the manifest. Others are left behind.
          write_manifest: called with a folder; writes the manifest there.
        """
        if is_remote(self.output):
            self._copy_to_output(list(files), write_manifest)
        else:
            self._rename_to_output(set(files), write_manifest)
        remove_tree(_parent(self.output))

    def _rename_to_output(self, files: set[str], write_manifest: Any) -> None:
        for name in files_below(self.folder):
            if name not in files:
                (self.folder / name).unlink(missing_ok=True)
        for path in [path for path in self.folder.iterdir() if path.is_dir()]:
            with contextlib.suppress(OSError):  # not empty: it has shards
                path.rmdir()
        write_manifest(self.folder)
        for path in (*self.folder.iterdir(), self.folder):
            if path.is_dir():
                sync(path)
        old = self.output.with_name(self.output.name + ".replaced")
        if old.exists():
            shutil.rmtree(old)
        if self.output.exists():
            self.output.rename(old)
        self.folder.rename(self.output)
        sync(self.output.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _copy_to_output(self, files: list[str], write_manifest: Any) -> None:
        there = set(names_below(self.folder))
        if missing := [file for file in files if file not in there]:
            raise PreparationError(
                f"{self.folder}: {missing[0]} is gone, and so are {len(missing) - 1} more. Has another run "
                f"published this work? Nothing was changed at {self.output}."
            )
        # From here on, what is at the output without a manifest is ours.
        write_atomically(_parent(self.output) / _PUBLISHING, self.folder.name)
        (self.output / MANIFEST).unlink(missing_ok=True)
        remove_tree(self.output)
        store = cast(Any, self.output).fs

        def copy(file: str) -> None:
            store.cp_file(cast(Any, self.folder / file).path, cast(Any, self.output / file).path)

        with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
            list(threads.map(copy, files))
        write_manifest(self.output)


def was_being_published(output: Path) -> bool:
    """Whether what is at `output` is what a run left that ended while it copied its data there."""
    return is_remote(output) and not (output / MANIFEST).exists() and (_parent(output) / _PUBLISHING).exists()


@contextlib.contextmanager
def open_partial(output: Path, contents: Mapping[str, Any], overwrite: bool) -> Iterator[Partial]:
    """The place where prepared data grow, with what an earlier run of the same kind has finished.

    Where the body fails before anything is finished, nothing is left; else it stays for the next run.

    Args:
      output: where the data will be.
      contents: all that decides what a shard holds but the text; JSON values.
      overwrite: whether finished work of another kind may be thrown away.

    Raises:
      PreparationError: another process is at work here, there is finished work of another kind, or the folder cannot be
        made.
    """
    key = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]
    parent = _parent(output)
    with _locked(parent):
        partial = Partial(output, parent / key, parent / f"{key}{_WORK}")
        _clear_others(parent, key, contents, overwrite)
        make_folder(partial.folder)
        make_folder(partial.records)
        write_atomically(partial.records / _PLAN, json.dumps(contents, sort_keys=True))
        try:
            yield partial
        except BaseException:
            if not _has_work(partial.records, partial.folder):
                remove_tree(parent)
            raise


def _has_work(records: Path, folder: Path) -> bool:
    """Whether there is work that took time: a shard, or a part that was looked through for duplicates."""
    looked_through = any(name.rsplit("/", 1)[-1].startswith(LOOKED_THROUGH) for name in names_below(records))
    return looked_through or bool(Finished(records, folder).count()[1])


def _parent(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


@contextlib.contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """Holds the lock; it goes with its process, so a killed run leaves none. Object stores have no locks."""
    if is_remote(parent):
        yield
        return
    with _open_lock(parent) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "?"
            raise PreparationError(f"{parent}: process {owner} is preparing this folder; wait for it.") from None
        if not (parent / _LOCK).exists() or not os.path.samestat(os.fstat(lock.fileno()), (parent / _LOCK).stat()):
            raise PreparationError(f"{parent}: another process has just finished here; start again.")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _open_lock(parent: Path) -> IO[str]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return (parent / _LOCK).open("a+")
    except OSError as error:
        raise PreparationError(f"{parent}: cannot be made ({error.strerror}). Choose another --output.") from error


def _clear_others(parent: Path, key: str, contents: Mapping[str, Any], overwrite: bool) -> None:
    """Removes what runs of another kind left, unless there is finished work in it."""
    names = {name.split("/")[0] for name in files_below(parent)} - {_LOCK, _PUBLISHING, key, key + _WORK}
    for work in sorted(name for name in names if name.endswith(_WORK)):
        folder = parent / work.removesuffix(_WORK)
        if overwrite or not folder.exists() or not _has_work(parent / work, folder):
            continue
        parts, shards = Finished(parent / work, folder).count()
        try:
            other = json.loads((parent / work / _PLAN).read_bytes())
        except (FileNotFoundError, ValueError):
            other = {}
        differences = ", ".join(sorted(k for k in {*other, *contents} if other.get(k) != contents.get(k)))
        raise PreparationError(
            f"{folder}: an unfinished preparation with {parts:,} finished parts and {shards:,} shards, but of another kind "
            f"(other {differences}). Go on with it by its own command, choose another --output, or throw it away with "
            "--overwrite."
        )
    for name in names:
        path = parent / name
        if path.is_file():
            path.unlink()
        else:
            remove_tree(path)
