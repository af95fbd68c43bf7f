"""A file that grows by whole pieces, and that a full or absent disk cannot make a training run fail."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

from deltalm_jax.errors import UserError

# A step's numbers take about a kilobyte in each of the two files.
MAX_PENDING_BYTES = 16 << 20


class LogError(UserError, OSError):
    """A file of a run's numbers cannot be opened at its start."""


class SteadyFile:
    """Appends pieces, each whole or not at all.

    Where writing fails, a warning is printed, what is to be written stays in memory (up to `MAX_PENDING_BYTES`), and each
    later `flush` tries again. Nothing is raised: a run's numbers are worth less than the run.

    Args:
      path: the file; what it holds stays.

    Raises:
      LogError: it cannot be opened now, when nothing is lost yet.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._pending = bytearray()
        self._failing = False
        self._lost = 0
        self._file: int | None = None
        try:
            self._file = self._open()
            self._end = os.fstat(self._file).st_size
        except OSError as error:
            raise LogError(f"{path}: cannot be opened for a run's numbers: {error.strerror}") from error

    def write(self, piece: bytes) -> None:
        """Takes a piece, or a part of one: `flush` says that it is whole."""
        self._pending += piece

    def flush(self) -> None:
        """Puts all pieces into the file."""
        if not self._pending:
            return
        try:
            if self._file is None:
                self._file = self._reopen()
            rest = memoryview(bytes(self._pending))
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._take_back()
            self._complain(error)
        else:
            self._end += len(self._pending)
            self._pending.clear()
            if self._failing:
                lost = f", but {self._lost:,} bytes that were to be written are lost" if self._lost else ""
                _say(f"{self._path}: can be written again{lost}")
            self._failing, self._lost = False, 0

    def close(self) -> None:
        """Tries once more, and says what was lost if it must be."""
        self.flush()
        if self._failing:
            _say(f"WARNING: {self._path}: {self._lost + len(self._pending):,} bytes could not be written and are lost")
            self._pending.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def _reopen(self) -> int:
        """The file as it is now: it may have lost its end, or be another one on another disk."""
        file = self._open()
        try:
            size = os.fstat(file).st_size
            if size > self._end:  # half a piece, that could not be taken back at once
                os.ftruncate(file, self._end)
            self._end = min(size, self._end)
        except OSError:
            os.close(file)
            raise
        return file

    def _take_back(self) -> None:
        """Removes what was written of pieces that are not whole."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._end)
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = None

    def _complain(self, error: OSError) -> None:
        if not self._failing:
            _say(
                f"WARNING: {self._path}: cannot be written ({error.strerror or error}). The run goes on; its numbers are "
                "kept in memory and written when that is possible again"
            )
        self._failing = True
        if len(self._pending) > MAX_PENDING_BYTES:
            self._lost += len(self._pending)
            self._pending.clear()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
