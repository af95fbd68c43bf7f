"""What a run asks of the place where its checkpoints are, and a disk and an object store do differently.

A disk has renaming, folders, links, and caches that must be told to write. A bucket of Google Cloud Storage (gs://…) has
none of these: an object appears whole or not at all, folders are only the beginnings of names, and all see at once what
anyone has written. So a step is removed there record first: from then on it does not count, whenever the rest goes.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any, Protocol, cast

from deltalm_jax.data.shards import sync
from deltalm_jax.errors import UserError
from deltalm_jax.fault_points import reached
from deltalm_jax.paths import LocationError, absolute, as_path, files_below, is_remote, store_errors

# For a bucket's first answer.
_ANSWER_SECONDS = 20.0
_THREADS = 8


class RunDirectoryError(UserError, RuntimeError):
    """The run directory cannot be used."""


class RunDirectoryInUseError(RunDirectoryError):
    """Another run goes on in the run directory."""


def run_path(location: str | Path) -> Path:
    """A run directory's path: a folder, or a place in a bucket (gs://BUCKET/FOLDER); what is a path stays as it is.

    Raises:
      LocationError: it is the URL of something else, or the package for gs:// is missing.
    """
    if not isinstance(location, str):
        return location
    is_bucket = location.startswith("gs://")
    if is_bucket:
        _use_one_client()
    path = as_path(location.rstrip("/") if is_bucket else location)
    if is_remote(path) and not (is_bucket and location.rstrip("/").count("/") >= 3):
        raise LocationError(
            f"{location}: a run is kept in a folder or in a bucket of Google Cloud Storage, gs://BUCKET/FOLDER; mount other "
            "stores (rclone, s3fs …)"
        )
    return path


def check_name(path: Path) -> None:
    """Refuses a place where checkpoints would be written that cannot be read: orbax looks for its parts by patterns.

    Raises:
      LocationError: a character of the path is one of a pattern.
    """
    if found := sorted({*"*?["} & {*str(absolute(path))}):
        raise LocationError(
            f"{path}: no checkpoint can be kept below a name with {' '.join(found)}, which orbax takes for a pattern; choose "
            "another --run_dir"
        )


def _use_one_client() -> None:
    """orbax's and jax's own small files go by fsspec too, and nothing is looked up in lists that were fetched before."""
    import fsspec.config
    from etils.epath import gpath

    # By TensorFlow's client otherwise, which takes seconds to import and finds credentials in its own way. epath asks once in
    # a process, at its first path, which may have been anything.
    os.environ.setdefault("EPATH_USE_TF", "false")
    if asked := getattr(gpath, "_is_tf_installed", None):
        asked.cache_clear()
    for kind in ("gs", "gcs"):
        fsspec.config.conf.setdefault(kind, {}).setdefault("use_listings_cache", False)


class Storage(Protocol):
    """What differs. All raise OSError, or an error that `store_errors` makes one."""

    def make(self, directory: Path) -> None:
        """Makes a directory for checkpoints, with those above it; fails if it cannot be written to."""

    def entries(self, directory: Path) -> list[Path]:
        """What is in a directory, by name."""

    def having(self, directory: Path, name: str) -> list[Path]:
        """What is in a directory and itself holds a file of this name."""

    def exists(self, path: Path) -> bool:
        """Whether there is anything of this name, be it a link to nowhere."""

    def is_folder(self, path: Path) -> bool:
        """Whether it is a folder itself, not a link to one."""

    def files(self, folder: Path, part: str) -> dict[str, int | None]:
        """All below `folder/part` that is no folder: path in `folder`, and size, or None for what is no file, in order.

        Links to folders are not followed.
        """

    def settle(self, folder: Path, names: list[str]) -> None:
        """Returns when these files of a folder, and all names on the way to them, would survive a loss of power."""

    def remove(self, folder: Path, step: int, record: str) -> None:
        """Removes a step's folder, so that a kill at any moment leaves it whole or without its record."""

    def rename(self, path: Path, to: Path) -> None:
        """Gives a folder or file, with all in it, another name in the same directory."""


class _Disk:
    def make(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(None, "no permission to write there")

    def entries(self, directory: Path) -> list[Path]:
        return sorted(directory.iterdir())

    def having(self, directory: Path, name: str) -> list[Path]:
        return [path.parent for path in directory.glob(f"*/{name}")]

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def is_folder(self, path: Path) -> bool:
        return path.is_dir() and not path.is_symlink()

    def files(self, folder: Path, part: str) -> dict[str, int | None]:
        def fail(error: OSError) -> None:
            raise error

        found: list[str] = []
        for place, folders, files in os.walk(folder / part, onerror=fail):
            links = [name for name in folders if os.path.islink(os.path.join(place, name))]
            found += [os.path.relpath(os.path.join(place, name), folder) for name in [*files, *links]]
        paths = {name: folder / name for name in sorted(found)}
        return {name: path.stat().st_size if path.is_file() else None for name, path in paths.items()}

    def settle(self, folder: Path, names: list[str]) -> None:
        # The record must not reach the disk before what it vouches for: contents, then the names of these.
        for place in [*names, *sorted({str(Path(name).parent) for name in names}, reverse=True), ""]:
            sync(folder / place)
        sync(folder.parent)

    def remove(self, folder: Path, step: int, record: str) -> None:
        # Renamed first: a kill in the middle must not leave a half-deleted step under a name that counts.
        away = folder.with_name(f".deleting-{folder.name}-{uuid.uuid4().hex}")
        folder.rename(away)
        reached("save/delete", step)
        shutil.rmtree(away)

    def rename(self, path: Path, to: Path) -> None:
        path.rename(to)


class _Bucket:
    def make(self, directory: Path) -> None:
        pass  # that it can be written to, the run's lock has shown

    def entries(self, directory: Path) -> list[Path]:
        store = cast(Any, directory)
        try:
            found = store.fs.ls(store.path, detail=False)
        except FileNotFoundError:
            return []
        names = sorted({name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != store.path})
        return [directory / name for name in names]

    def having(self, directory: Path, name: str) -> list[Path]:
        return [entry for entry in self.entries(directory) if (entry / name).exists()]

    def exists(self, path: Path) -> bool:
        return path.exists()

    def is_folder(self, path: Path) -> bool:
        store = cast(Any, path)
        return store.fs.isdir(store.path) and not store.fs.isfile(store.path)  # both can be, of one name

    def files(self, folder: Path, part: str) -> dict[str, int | None]:
        return {f"{part}/{name}": size for name, size in sorted(files_below(folder / part).items())}

    def settle(self, folder: Path, names: list[str]) -> None:
        pass

    def remove(self, folder: Path, step: int, record: str) -> None:
        names = [*files_below(folder)]
        if record in names:
            _remove_objects(folder, [record])
            names.remove(record)
        reached("save/delete", step)
        _remove_objects(folder, names)

    def rename(self, path: Path, to: Path) -> None:
        # No name in a bucket is changed: each object is copied, and when all are, the old ones go.
        store, target = cast(Any, path), cast(Any, to)
        names = [f"/{name}" for name in files_below(path)] if self.is_folder(path) else []
        names += [""] if store.fs.isfile(store.path) else []
        for name in names:
            store.fs.cp_file(f"{store.path}{name}", f"{target.path}{name}")
        for name in names:
            store.fs.rm_file(f"{store.path}{name}")


def _remove_objects(folder: Path, names: list[str]) -> None:
    """Each by itself: the client's `rm` of several takes names for patterns."""
    store = cast(Any, folder)
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "remove-objects") as pool:
        for _ in pool.map(lambda name: store.fs.rm_file(f"{store.path}/{name}"), names):
            pass


def storage_of(path: Path) -> Storage:
    """What to ask for the files of a path from `run_path`."""
    return _Bucket() if is_remote(path) else _Disk()


def check_readable(path: Path) -> None:
    """Makes sure, for a place in a bucket, that it answers: within seconds, where its client would try again for a minute.

    Raises:
      LocationError: it refuses, or does not answer.
    """
    if not is_remote(path):
        return
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            with store_errors():
                storage_of(path).entries(path)
        except Exception as error:  # handed on
            answers.put(error)
        else:
            answers.put(None)

    threading.Thread(target=look, name="look-at-the-bucket", daemon=True).start()
    try:
        error = answers.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise LocationError(
            f"{path} cannot be read: its list of objects has not come in {_ANSWER_SECONDS:.0f} s. Is the bucket reachable "
            "from here, and has this machine an account (gcloud auth application-default login)?"
        ) from None
    if isinstance(error, OSError):
        raise LocationError(f"{path} cannot be read: {error.strerror or error}") from error
    if error is not None:
        raise error
