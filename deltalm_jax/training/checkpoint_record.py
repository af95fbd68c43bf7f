"""The record of a checkpoint, format 2: what is on disk, with sizes and digests. Nothing here needs jax.

    RUN_DIR/checkpoints/STEP/state/        orbax's files
    RUN_DIR/checkpoints/STEP/record.json   written last, when all of these are on disk

The record is a JSON object of

    digest       xxh3 (128 bit, hexadecimal) of the file's own bytes, with these 32 characters as zeros; always first
    format       2
    written_by   the library's version
    written      date and time, UTC
    step         updates done
    temporary    whether it goes as soon as there is a newer step
    leaves       {path: [shape, dtype]} of the state
    about        what the run said of itself (configuration, vocabulary, versions)
    files        {path in STEP: {"bytes", "xxh3"}}: all files below state/, no more and no fewer

so that any flipped bit and any file that is cut, missing or added is noticed, in the record as in the arrays.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import xxhash

import deltalm_jax
from deltalm_jax.data.shards import digest_file, write_atomically
from deltalm_jax.errors import UserError
from deltalm_jax.paths import is_remote, store_errors
from deltalm_jax.training.storage import storage_of

FORMAT = 2
RECORD = "record.json"
STATE = "state"

_HEAD = b'{\n "digest": "'
_NO_DIGEST = b"0" * 32
_KEYS = {"format": int, "written_by": str, "written": str, "step": int, "leaves": dict, "about": dict, "files": dict}
_DIGEST_THREADS = 8
# What orbax and `write_atomically` leave while they write, and nothing else: only folders of such entries are removed.
_OURS = re.compile(
    rf"{STATE}|{STATE}\.orbax-checkpoint-tmp.*|{re.escape(RECORD)}|\.{re.escape(RECORD)}\.[0-9a-f]+\.tmp"
)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written or used; the message names it and says what to do."""


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read now, and may be sound: no permission, a network file system that does not answer, …"""


# What damage looks like. Any other error of the system says nothing of the file.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


def reading_error(path: object, error: OSError) -> CheckpointError:
    """The error for a file or folder that could not be read."""
    # Object stores' clients raise the class without the number.
    kind = CheckpointError if error.errno in _DAMAGE or isinstance(error, FileNotFoundError) else UnreadableError
    return kind(f"{printable(path)} cannot be read: {error.strerror or error}")


def printable(text: object) -> str:
    """Text for a terminal: control characters, as a file's name or content may hold, are written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def step_of(folder: pathlib.Path) -> int | None:
    """The step that a folder's name stands for; None if it is no step's ("7", but not "07" or "7.old")."""
    name = folder.name
    return int(name) if re.fullmatch(r"0|[1-9][0-9]{0,17}", name) else None


def digest_files(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """{name: xxh3} of files in a folder, several at once (hashing releases Python's lock).

    Raises:
      CheckpointError: one cannot be read; names it.
    """

    def digest(name: str) -> str:
        try:
            with store_errors():
                return digest_file(folder / name)
        except OSError as error:
            raise reading_error(folder / name, error) from error

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_DIGEST_THREADS, "checkpoint-digest") as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def files_below(folder: pathlib.Path, part: str = STATE) -> dict[str, int | None]:
    """All that lies below `folder/part` and is no folder: path in `folder`, and size, or None for what is no file, in order.

    Links are not followed; one to a folder counts as a file.

    Raises:
      OSError: a folder cannot be listed.
    """
    with store_errors():
        return storage_of(folder).files(folder, part)


def encode_record(record: dict[str, Any]) -> bytes:
    """A record file's content, with format, version and digest put in."""
    content = {"digest": _NO_DIGEST.decode(), "format": FORMAT, "written_by": deltalm_jax.__version__} | record
    data = json.dumps(content, indent=1).encode()
    return _HEAD + _digest(data).encode() + data[len(_HEAD) + len(_NO_DIGEST) :]


def write_record(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes a step's record: all of it or nothing, and on disk when this returns."""
    write_atomically(folder / RECORD, encode_record(record))


def read_record(folder: pathlib.Path) -> dict[str, Any]:
    """A step's record, checked by its own digest; the files that it lists are not looked at.

    Raises:
      CheckpointError: it cannot be read, has changed since it was written, or is of another format (which is named).
    """
    path = folder / RECORD
    try:
        with store_errors():
            data = path.read_bytes()
    except OSError as error:
        raise reading_error(path, error) from error
    end = len(_HEAD) + len(_NO_DIGEST)
    is_whole = data.startswith(_HEAD) and data[len(_HEAD) : end].decode("latin-1") == _digest(
        _HEAD + _NO_DIGEST + data[end:]
    )
    version = _format_of(data)
    # A damaged digit of this format must not pass for another format, which begins otherwise or is whole.
    if version not in (None, FORMAT) and (is_whole or not data.startswith(_HEAD)):
        raise CheckpointError(
            f"{printable(path)} has checkpoint format {version}; this version ({deltalm_jax.__version__}) reads format "
            f"{FORMAT}: use the version that wrote it"
        )
    if not is_whole:
        raise CheckpointError(
            f"the content of {printable(path)} has changed since it was written (its digest of itself differs)"
        )
    try:
        record = json.loads(data)
        wrong = [key for key, kind in _KEYS.items() if type(record[key]) is not kind]
        if not wrong and not all(type(f) is dict and {"bytes", "xxh3"} <= f.keys() for f in record["files"].values()):
            wrong = ["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{printable(path)} is no record of a checkpoint: {error!r}") from error
    if wrong:
        raise CheckpointError(f"{printable(path)} is no record of a checkpoint: {', '.join(wrong)} of a wrong type")
    return record


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _format_of(data: bytes) -> int | None:
    try:
        version = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if type(version) is int else None


def is_removable(folder: pathlib.Path) -> bool:
    """Whether a step's folder is one that this version wrote, finished or not, and so may remove.

    It must be a real folder (no link) that holds nothing but what a save leaves, and no record of another format.
    """
    storage = storage_of(folder)
    try:
        with store_errors():
            if not storage.is_folder(folder):
                return False
            if not all(_OURS.fullmatch(entry.name) for entry in storage.entries(folder)):
                return False
            return _format_of((folder / RECORD).read_bytes()) in (None, FORMAT)
    except FileNotFoundError:
        return True  # never finished
    except OSError:
        return False


class StepRecords:
    """The records of a run's checkpoints, to be read; nothing is written or removed.

    Args:
      directory: `RUN_DIR/checkpoints`.
      warn: takes one line of text when a damaged step is passed over.
    """

    def __init__(self, directory: pathlib.Path, warn: Callable[[str], None]) -> None:
        # orbax wants an absolute path.
        self.directory, self.warn = directory if is_remote(directory) else directory.absolute(), warn

    def folder(self, step: int) -> pathlib.Path:
        """Where a step is, whether it is there or not."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Steps that have a record, ascending: by number, whatever the files' times. Others were never finished.

        Raises:
          UnreadableError: the directory cannot be listed now.
        """
        try:
            with store_errors():
                found = map(step_of, storage_of(self.directory).having(self.directory, RECORD))
                return sorted(step for step in found if step is not None)
        except OSError as error:
            raise UnreadableError(f"{printable(self.directory)} cannot be listed: {error.strerror or error}") from error

    def latest(self) -> dict[str, Any] | None:
        """The record of the newest step that verifies, or None if there is no checkpoint at all.

        Raises:
          CheckpointError: there are checkpoints, but none verifies.
          UnreadableError: one cannot be read. It may be sound, so it is not passed over: the run would go on from an older
            one, and retire it.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.verify(step)
            except UnreadableError as error:
                raise UnreadableError(
                    f"checkpoint {step} may be sound, but {error}. Try again; or move it away, to go on from an older one"
                ) from error
            except CheckpointError as error:
                self.warn(f"WARNING: checkpoint {step} is passed over: {error}")
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} verifies ({', '.join(map(str, steps))}); restore them from a "
                "copy, or start again in another --run_dir"
            )
        return None

    def verify(self, step: int, *, digests: bool = True) -> dict[str, Any]:
        """Reads a step's record and checks its files against it.

        Args:
          step: updates done.
          digests: read the files and compare their content too, not only their names and sizes.

        Returns:
          The record.

        Raises:
          UnreadableError: a file cannot be read now.
          CheckpointError: names the file that is missing or should not be there, or has another size or content.
        """
        folder = self.folder(step)
        record = read_record(folder)
        if record["step"] != step:
            raise CheckpointError(f"{printable(folder / RECORD)} is of step {record['step']}: the folder was renamed")
        files = record["files"]
        try:
            found = files_below(folder)
            for name in sorted({*files} - {*found}):
                raise CheckpointError(f"{printable(folder / name)} is missing")
            for name in sorted({*found} - {*files}):
                raise CheckpointError(f"{printable(folder / name)} is not in the checkpoint's record: move it away")
            for name, wanted in files.items():
                size = found[name]
                if size is None:
                    raise CheckpointError(f"{printable(folder / name)} is no file")
                if size != wanted["bytes"]:
                    raise CheckpointError(
                        f"{printable(folder / name)} has {size} bytes, its record says {wanted['bytes']}"
                    )
        except OSError as error:
            raise reading_error(error.filename or folder, error) from error
        if digests:
            for name, digest in digest_files(folder, files).items():
                if digest != files[name]["xxh3"]:
                    raise CheckpointError(
                        f"the content of {printable(folder / name)} has changed since it was written (digest differs)"
                    )
        return record
