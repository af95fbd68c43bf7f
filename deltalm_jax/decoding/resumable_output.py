"""An output file that a killed run leaves in a state to go on from.

Beside OUTPUT stands OUTPUT.progress.json while it is being written. It says how much of it is whole, what it was made of and
how; what was written after that is cut off. It is removed when the output is complete.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO

from deltalm_jax.data.shards import write_atomically
from deltalm_jax.decoding.arguments import GenerationError

_COPY = 1 << 20


class OutputError(GenerationError):
    """There is an output already, and it is not the beginning of this one."""


class ResumableOutput:
    """Use as a context manager. What is there of an earlier run with the same settings is kept.

    Args:
      path: the output.
      settings: JSON-able: all that the output depends on, beside the input.

    Attributes:
      lines: that are there already, and of the input need not be decoded again.

    Raises:
      OutputError: there is another output, or it was damaged.
    """

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]) -> None:
        self.path, self._progress = path, path.with_name(f"{path.name}.progress.json")
        self._settings = json.loads(json.dumps(settings))
        self.lines, self._bytes, self._digest, self._input_digest = 0, 0, 0, 0
        if self._progress.exists():
            self._take_up()
        elif path.exists():
            raise OutputError(f"{path} is there already, and complete: remove it, or choose another --output")
        else:
            self._write_progress()  # before the output: one that is there alone is complete
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        try:
            self._check_output()
        except BaseException:
            self._file.close()
            raise

    def _take_up(self) -> None:
        try:
            record = json.loads(self._progress.read_text())
            settings = record["settings"]
            self.lines, self._bytes = int(record["lines"]), int(record["bytes"])
            self._digest, self._input_digest = int(record["digest"]), int(record["input_digest"])
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self._progress} is damaged ({error!r}): remove it and {self.path}") from error
        names = [name for name in {**settings, **self._settings} if settings.get(name) != self._settings.get(name)]
        if names:
            differences = "\n".join(
                f"  {name}: {settings.get(name)!r} then, {self._settings.get(name)!r} now" for name in names
            )
            raise OutputError(
                f"{self.path} was begun with other settings:\n{differences}\nTake those to go on with it; or remove it and "
                f"{self._progress.name} to start anew"
            )

    def _check_output(self) -> None:
        digest, left = 0, self._bytes
        while left and (piece := self._file.read(min(left, _COPY))):
            digest, left = zlib.crc32(piece, digest), left - len(piece)
        if left or digest != self._digest:
            raise OutputError(
                f"the first {self._bytes} bytes of {self.path} are not those that {self._progress.name} tells of: remove both"
            )
        self._file.seek(self._bytes)
        self._file.truncate()

    def skip_input(self, lines: Iterator[bytes]) -> None:
        """Takes those lines of the input that the output so far was made of.

        Raises:
          OutputError: they are others.
        """
        digest = _digest_of(itertools.islice(lines, self.lines))
        if digest != self._input_digest:
            raise OutputError(
                f"{self.path} was begun with another input: its first {self.lines} lines differ. Take that input to go on, "
                f"or remove {self.path} and {self._progress.name} to start anew"
            )

    def write(self, output: Sequence[bytes], lines: Sequence[bytes]) -> None:
        """Adds lines, made of these lines of the input. From then on they are safe."""
        content = b"".join(output)
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines += len(lines)
        self._bytes += len(content)
        self._digest = zlib.crc32(content, self._digest)
        self._input_digest = _digest_of(lines, self._input_digest)
        self._write_progress()

    def _write_progress(self) -> None:
        record = {
            "lines": self.lines,
            "bytes": self._bytes,
            "digest": self._digest,
            "input_digest": self._input_digest,
            "settings": self._settings,
        }
        write_atomically(self._progress, json.dumps(record, indent=1))

    def complete(self) -> None:
        """Says that nothing follows."""
        self._progress.unlink(missing_ok=True)

    def __enter__(self) -> ResumableOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _digest_of(lines: Iterable[bytes], digest: int = 0) -> int:
    for line in lines:
        digest = zlib.crc32(line, digest)
    return digest
