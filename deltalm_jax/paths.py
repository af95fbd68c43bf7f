"""Where files are: folders that this machine sees, or object stores by their URL (gs://bucket/folder).

`as_path` gives a `pathlib.Path` for the former and a `UPath` of universal_pathlib for the latter, which has the same
methods over fsspec; code that reads goes through `path.open("rb")` and `path.stat()` and sees no difference. What does
differ is said here: an object store has no rename, no lock and no appending, but an object appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from deltalm_jax.errors import UserError

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = ("file", "local")
# The packages behind fsspec's file systems that raise errors of their own.
_CLIENTS = ("aiohttp", "gcsfs", "google")


class LocationError(UserError, ValueError):
    """A place that cannot be reached from here; the message says what is missing."""


def as_path(location: str | Path) -> Path:
    """A path for a folder or file name, or for a URL of a kind that fsspec knows.

    Returns:
      A `pathlib.Path`, or a `UPath` for a URL (but file://), which is not one by its type but has its methods.

    Raises:
      LocationError: the package for that kind of URL is not installed, or nobody knows it.
    """
    match = _URL.match(location) if isinstance(location, str) else None
    if not isinstance(location, str):
        return location
    if match is None:
        return Path(location)
    from upath import UPath

    try:
        path = UPath(location)
        # Asks for the file system, and so for the package behind it.
        if type(path.fs).__name__ == "LocalFileSystem" and match[1] in _LOCAL:
            return Path(path.path)
    except (ImportError, ValueError) as error:
        hint = "install the extra gcs (pip install 'deltalm_jax[gcs]')" if match[1] in ("gs", "gcs") else str(error)
        raise LocationError(f"{location}: cannot be reached from here: {hint}") from error
    return cast(Path, path)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Inside, what an object store's client raises is an OSError, as what a file system raises is.

    Raises:
      OSError: in place of the client's own errors; with their words.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None or "\n" not in str(error):
            raise
        # Who may not do what is in a second line, and messages show the first.
        raise OSError(" ".join(str(error).split())) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"the object store answers: {words}") from error


def is_remote(path: Path) -> bool:
    """Whether a path of `as_path` is an object store's."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """The same place, whatever the working directory of a worker."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def state_of(path: Path) -> list[Any]:
    """What changes when a file's content does, found without reading it: size, times and inode; or the store's own mark.

    The time of the last change of the inode is among them, which no tool sets back: a file that is fetched again with its
    old size and date is told from the one before.
    """
    if is_remote(path):
        return [path.stat().st_size, cast(Any, path).fs.ukey(cast(Any, path).path)]
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def upload(local: Path, path: Path) -> None:
    """Copies a file of this machine into an object store; the object appears when it is whole.

    Raises:
      OSError: from the store.
    """
    with store_errors(), local.open("rb") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)


def make_folder(path: Path) -> None:
    """Makes a folder inside one that is there already; object stores have none to make."""
    if not is_remote(path):
        path.mkdir(exist_ok=True)


def files_below(path: Path) -> dict[str, int]:
    """All files in a folder and its subfolders: path relative to it, with "/", and size in bytes. Empty if it is absent."""
    if is_remote(path):
        return {name: int(size) for name, size in _objects_below(path).items()}
    sizes = {}
    for name in names_below(path):
        with contextlib.suppress(FileNotFoundError):  # a temporary file of a worker, gone meanwhile
            sizes[name] = (path / name).stat().st_size
    return sizes


def names_below(path: Path) -> list[str]:
    """The names of `files_below`, which a file system gives much faster than the sizes."""
    if is_remote(path):
        return list(_objects_below(path))
    root = str(path)
    return [
        name if folder == root else f"{os.path.relpath(folder, root)}/{name}"
        for folder, _, names in os.walk(root)
        for name in names
    ]


def _objects_below(path: Path) -> dict[str, int]:
    remote = cast(Any, path)
    remote.fs.invalidate_cache()
    found = remote.fs.find(remote.path, detail=True)
    start = len(remote.path.rstrip("/")) + 1
    return {name[start:]: info["size"] for name, info in found.items() if info["type"] == "file"}


def remove_tree(path: Path) -> None:
    """Removes a folder and all in it, if it is there."""
    if is_remote(path):
        remote = cast(Any, path)
        remote.fs.invalidate_cache()
        if remote.fs.exists(remote.path):
            remote.fs.rm(remote.path, recursive=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
